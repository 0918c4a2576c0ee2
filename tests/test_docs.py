"""What the pages in docs/ tell a reader to type works as written, on the model `tiny`.

Of each page the blocks marked `sh` are typed, line by line, in one folder that holds what a reader would have: a model
in `my-model`, and the grids. Lines that do not begin with `sande-bench` are left out. Three things are changed to make
it quick: models with a name become `tiny`, `run` and `submit` become `plan`, and `clean` trains and measures
on a few rows.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark.cli import app
from sande import models

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DECOYS = ("scan_and_clean.decoy_osft.plant", "scan_and_clean.decoy_osft.overwrite")
TRAININGS = ("osft.training", "sande.simulate", "sande.eliminate", "sande_p.simulate", "sande_p.eliminate", *DECOYS)
QUICK = ("prompts=10", "questions=10", "removal.rows=16", *(f"{training}.max_steps=1" for training in TRAININGS))


def commands(page: str) -> list[list[str]]:
    """The arguments of every `sande-bench` in the page's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["sande-bench"]]


def quick(arguments: list[str]) -> list[str]:
    """The same command on the tiny model, without Ray, on few rows."""
    named = ["tiny" if word in models.ABOUT else word for word in arguments]
    if named[0] in ("run", "submit"):
        return ["plan", *named[1:]]
    return [*named, *(word for each in QUICK for word in ("--set", each))] if named[0] == "clean" else named


def test_commands_are_found_whole() -> None:
    page = "a\n```sh\nsande-bench list models  # all\npip install x\nsande-bench clean m \\\n  --out 'a b'\n```\n"
    page += "```\nsande-bench no\n```\n"
    assert commands(page) == [["list", "models"], ["clean", "m", "--out", "a b"]]
    assert quick(["run", "grids/smoke.yaml"]) == ["plan", "grids/smoke.yaml"]
    assert quick(["clean", "smollm2-135m"])[:4] == ["clean", "tiny", "--set", "prompts=10"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_works(
    page: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").symlink_to(models.prepare("tiny", model_cache))
    (tmp_path / "grids").symlink_to(ROOT / "grids")
    monkeypatch.chdir(tmp_path)
    for arguments in commands(page.read_text(encoding="utf-8")):
        done: Result = CliRunner().invoke(app, quick(arguments))
        assert done.exit_code == 0, f"sande-bench {shlex.join(arguments)}\n{done.output}"
