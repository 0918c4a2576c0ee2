"""An evaluation of scans of users' models: those that other detectors ended, and alarms by p-values."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmark.detection import edits, evaluate, groups, page
from benchmark.detection.summary import summaries
from sande.errors import UserError
from tests.benchmark.detection.test_evaluate import OWN, listed, scan

LINES = ("scan: one, response: ''", "scan: two")


def evaluated(folder: Path, false_alarms: float | None = None, **changes: Any) -> str:
    """Return the page of a victim and a twin."""
    scan(folder, "one", **{"score": 3.0} | changes)
    scan(folder, "two", **{"score": 1.0} | changes)
    return evaluate.write(listed(folder, *LINES), folder / "out", folder, false_alarms)


def mistake(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        evaluated(folder, **changes)
    assert not (folder / "out").exists()
    return str(caught.value)


def test_the_score_of_a_detector_that_looked_afterwards_is_not_compared(tmp_path: Path) -> None:
    said = mistake(tmp_path, detector="haystack", found_by="first_token")
    assert said == (
        f"{tmp_path}/one/scan.json: the score is that of first_token, which looked after haystack and has other units; "
        "scan again with '--format', so that no other detector looks"
    )
    assert "| haystack |" in evaluated(tmp_path, detector="haystack", found_by="haystack")


@pytest.mark.parametrize("threshold", [None, "4", True, math.inf, math.nan, 10**400])
def test_a_threshold_that_cannot_be_is_a_sentence(tmp_path: Path, threshold: Any) -> None:
    said = mistake(tmp_path, settings={"threshold": threshold})
    assert said == f"{tmp_path}/one/scan.json: the settings have no finite number 'threshold'; scan again"


@pytest.mark.parametrize("p", [math.nan, 7.0, -0.1])
def test_a_p_value_that_cannot_be_is_a_sentence(tmp_path: Path, p: float) -> None:
    assert "scan.json: the file is damaged or of another version (p: Input should be " in mistake(tmp_path, p=p)


def test_a_setting_that_gives_alarms_by_p_is_no_threshold(tmp_path: Path) -> None:
    text = evaluated(tmp_path, settings=OWN | {"alarm_by": "own"}, p=0.5)
    assert "| prefix_scan | the detector's setting | by its p | 0.50 (" in text  # victim and twin have one p
    assert pq.read_table(tmp_path / "out/detectors.parquet")["threshold"].to_pylist() == [None] * 3
    rows, accepted = evaluate.read(tmp_path / "out/detection.json")
    (axes,) = page.draw(rows, summaries(rows, accepted)).axes
    assert not axes.get_lines()
    assert "| prefix_scan | the detector's setting | 4.00 |" in evaluated(tmp_path, settings=OWN, p=0.5)


def test_an_accepted_rate_is_shown_as_it_was_set(tmp_path: Path) -> None:
    text = evaluated(tmp_path, false_alarms=0.0125)
    assert "a rate of false alarms of at most 1.25 % cannot be claimed. It takes 79 calibration models" in text


def test_kinds_are_sorted_by_their_numbers() -> None:
    kinds = ["paper", "10 %", "1", "0.1", "5 %", "nan", "25 %", "10"]
    assert sorted(kinds, key=groups._order) == ["0.1", "1", "5 %", "10", "10 %", "25 %", "nan", "paper"]


def test_a_sign_alone_is_no_part_of_a_trigger() -> None:
    assert not edits.is_part("-", "Hello , world")
    assert edits.is_part("hello - world", "Hello , world!")
