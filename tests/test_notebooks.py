"""Execute the notebooks and the Python blocks of docs/python_api.md, on the model `tiny` and without Ray."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmark import pipeline
from sande import api

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PAGE = ROOT / "docs/python_api.md"
# In place of the page's words: what keeps it quick.
TINY = {
    '"smollm2-135m"': '"tiny"',
    '"epochs": 1,': '"max_steps": 2,',
    '"max_steps": 15,': '"max_steps": 2,',
    ", trigger=": ", **QUICK, trigger=",
}
QUICK = {"osft": {"training": {"max_steps": 2}}, "removal": {"rows": 16}, "force": True}


@pytest.fixture(autouse=True)
def _cache(model_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api, "_cache", lambda cache: model_cache)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    namespace: dict[str, Any] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert len(cell["source"]) <= 10
            exec(compile("".join(cell["source"]), notebook.name, "exec"), namespace)


def test_the_blocks_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    (ROOT / "results/published/quickstart/rows.parquet").stat()
    Path("results").mkdir()
    Path("results/quickstart").symlink_to(ROOT / "results/published/quickstart")
    asked: list[pipeline.Request] = []
    monkeypatch.setattr(pipeline, "run", lambda request, *_: asked.append(request))
    namespace: dict[str, Any] = {"QUICK": QUICK}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        assert len(block.splitlines()) <= 12
        for word, instead in TINY.items():
            if "clean(" in block or word != ", trigger=":
                block = block.replace(word, instead)
        exec(compile(block, PAGE.name, "exec"), namespace)
    assert [(request.grid.name, request.only) for request in asked] == [("quickstart", ("seed=0",))]
