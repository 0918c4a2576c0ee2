"""An evaluation that is read again, perhaps after an edit, or written over an earlier one."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.detection import evaluate
from tests.benchmark.detection.test_evaluate import OWN, listed, scan
from tests.benchmark.helpers import mistake

GROUPED = ("scan: twin, groups: [[format, chat]]", "scan: loud, groups: [[format, paper]]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scanned twins."""
    scan(tmp_path, "twin", score=1.0, settings=OWN, p=0.2)
    scan(tmp_path, "loud", score=5.0, settings=OWN, p=0.01, alarm=True)
    return tmp_path


def page(folder: Path, *lines: str) -> str:
    return evaluate.write(listed(folder, *lines), folder / "out", folder)


def edited(folder: Path, scan: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Return an evaluation with other values in its first scan and at its top."""
    page(folder, *GROUPED)
    record = json.loads((folder / "out/detection.json").read_text()) | changes
    record["scans"][0] |= scan or {}
    (folder / "edited.json").write_text(json.dumps(record))
    return folder / "edited.json"


def refused(path: Path) -> str:
    """Return what is wrong, without the place and the mending."""
    said = mistake("detection", path, "--out", path.parent / "again")
    assert not (path.parent / "again").exists()
    begin, _, rest = said.partition(" (")
    assert begin == f"sande-bench: {path}: the file is damaged or was edited"
    problem, _, fix = rest.partition("); ")
    assert fix == "use 'sande-bench detection' on a list of scans"
    return problem


@pytest.mark.parametrize("value", [None, "x", 0, 1, True, float("nan"), 1e-320])
def test_a_rate_that_cannot_be_is_a_sentence(folder: Path, value: Any) -> None:
    assert refused(edited(folder, false_alarms=value)).startswith("false_alarms: Input should be ")


@pytest.mark.parametrize(
    "change",
    [
        *({"score": value} for value in (None, "9", float("inf"), 10**400)),
        *({"how": value} for value in (None, "x", "[]", "{}", '{"settings": 3}')),
        *({"groups": value} for value in (None, "x", "[]", '{"a": "\\ud800"}')),
        *({"rank": value} for value in (0, 10**30, 1.5)),
        *({"own_p": float("nan")}, {"victim": "yes"}, {"label": 3}),
    ],
    ids=lambda change: f"{change}"[:30],
)
def test_a_value_that_no_scan_has_is_a_sentence(folder: Path, change: dict[str, Any]) -> None:
    (name,) = change
    assert refused(edited(folder, change)).startswith(f"scans: 0: {name}: Input should be ")


def test_a_number_stays_as_it_is_written(folder: Path) -> None:
    path = edited(folder, {"score": 3})
    evaluate.write(path, folder / "again", folder)
    assert '"score": 3,' in (folder / "again/detection.json").read_text()


def test_without_its_settings_a_scan_has_no_rule_by_its_own_p(folder: Path) -> None:
    path = edited(folder)
    assert "own p" in evaluate.write(path, folder / "again", folder).partition("A detector's")[0]
    path = edited(folder, {"how": ""})
    assert "own p" not in evaluate.write(path, folder / "again", folder).partition("A detector's")[0]


def test_groups_of_an_earlier_list_are_removed(folder: Path) -> None:
    page(folder, *GROUPED)
    assert (folder / "out/groups.parquet").is_file()
    page(folder, "scan: twin", "scan: loud")
    assert not (folder / "out/groups.parquet").exists()
