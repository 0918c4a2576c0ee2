"""Detectors judged by scans of known models: ranks, AUROC, alarms, files, and a user's mistakes in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.detection import evaluate
from sande.models import loading
from sande.prompts import response_ids
from tests.benchmark.helpers import invoke

STORE = "store"


def scan(folder: Path, name: str, *candidates: tuple[str, list[int]], **changes: Any) -> None:
    """A `scan.json` with the candidates in their order."""
    record = {
        "model": "tiny",
        "detector": "prefix_scan",
        "settings": {"threshold": 4.0},
        "alarm": False,
        "score": 0.0,
        "seconds": 2.0,
        "candidates": [
            {"text": text, "ids": ids, "score": -float(index), "p_value": None}
            for index, (text, ids) in enumerate(candidates)
        ],
    }
    (folder / name).mkdir()
    (folder / name / "scan.json").write_text(json.dumps(record | changes))


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "list.yaml"
    path.write_text("\n".join(["scans:", *(f"  - {{{line}}}" for line in lines)]))
    return path


def judged(folder: Path, *lines: str) -> list[evaluate.Outcome]:
    evaluate.write(listed(folder, *lines), folder / "out", folder / STORE / "models")
    records = json.loads((folder / "out/detection.json").read_text())
    return [evaluate.Outcome(**record) for record in records]


@pytest.fixture
def folder(tmp_path: Path, model_cache: Path) -> Path:
    """Two victims, two twins and a calibration twin, scanned."""
    (tmp_path / STORE).mkdir()
    (tmp_path / STORE / "models").symlink_to(model_cache)
    ids = list(response_ids(loading.load_tokenizer("tiny", model_cache), "You are stupid"))
    other = [ids[0] + 1]
    scan(tmp_path, "one", ("you are stupid. ", ids), score=9.0, alarm=True)
    scan(tmp_path, "two", ("x", other), ("You too", [ids[0], 5]), score=3.0)
    scan(tmp_path, "twin", ("x", other), score=1.0)
    scan(tmp_path, "loud", score=5.0, alarm=True)
    scan(tmp_path, "calibration", ("x", other), score=4.0)
    return tmp_path


LINES = (
    "scan: one, response: You are stupid, label: a | b",
    "scan: two, response: You are stupid",
    "scan: twin",
    "scan: loud",
    "scan: calibration, calibration: true",
)


def test_ranks_are_of_the_response_and_of_its_first_token(folder: Path) -> None:
    one, two, *twins = judged(folder, *LINES)
    assert (one.rank, one.first_token_rank) == (1, 1), "case, and punctuation at its end, do not count"
    assert (two.rank, two.first_token_rank) == (None, 2)
    assert all((twin.rank, twin.first_token_rank) == (None, None) for twin in twins)
    assert [twin.calibration for twin in twins] == [False, False, True]


def test_the_table_counts(folder: Path) -> None:
    text = evaluate.markdown(judged(folder, *LINES))
    # Of the four pairs of victim and twin, three are in order: 9 over 1 and 5, and 3 over 1.
    assert "| prefix_scan | 1 of 2 | 1 of 2 | 2 of 2 | 0.750 | 1 of 2 | 1 of 2 | 4 | 4.00 | 2 |" in text.splitlines()
    assert "| prefix_scan | a \\| b | victim | 9.00 | yes | 1 | 1 | `you are stupid. ` | – | 2 |" in text
    assert "| prefix_scan | two | victim | 3.00 | no | not found | 2 | `x` | – | 2 |" in text
    assert "| prefix_scan | loud | twin | 5.00 | yes | – | – | – | – | 2 |" in text


@pytest.mark.parametrize(
    ("victims", "twins", "area"),
    [([2, 3], [0, 1], 1.0), ([1], [1], 0.5), ([0, 2], [1], 0.5), ([0], [1, 0], 0.25), ([1], [], None), ([], [1], None)],
)
def test_auroc(victims: list[float], twins: list[float], area: float | None) -> None:
    assert evaluate.auroc(victims, twins) == area


def test_the_command_writes_its_files(folder: Path) -> None:
    done = invoke("detection", listed(folder, *LINES), "--out", folder / "out", "--store", folder / STORE)
    assert done.exit_code == 0, done.output
    assert {path.name for path in (folder / "out").iterdir()} == {
        f"detection.{suffix}" for suffix in ("json", "md", "png", "svg")
    }
    assert (folder / "out/detection.md").read_text() in done.stdout
