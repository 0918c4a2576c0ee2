"""The page of detectors: its opening, and tables without columns, rows and labels that say nothing."""

from pathlib import Path

from tests.benchmark.detection.test_evaluate import KINDS, LINES, folder, kinds, page, scan

__all__ = ["folder", "kinds"]  # fixtures


def test_a_detector_that_names_no_trigger_has_no_count_of_triggers(kinds: Path) -> None:
    (row,) = (line for line in page(kinds, *KINDS).splitlines() if line.startswith("| prefix_scan | all |"))
    assert row.endswith(" | 1 of 2 | 2 of 2 | 1 of 2 | 1 of 2 | 2 |")
    for name in ("one", "two"):
        scan(kinds, name, ("x", [1]), score=9.0)
    lines = page(kinds, *KINDS).splitlines()
    (head,) = (line for line in lines if line.startswith("| Detector | Models |"))
    assert head.endswith(" | Response found | Near | Seconds |"), "a column with nothing in any row is left out"


def test_equal_recalls_have_one_column(kinds: Path) -> None:
    text = page(kinds, *KINDS)
    assert "Recall at 5 %" not in text
    assert "at 5 % false alarms it is the same here" in text
    for twin in range(20):
        scan(kinds, f"twin{twin}", score=float(twin == 0) * 5)
    text = page(kinds, *KINDS[:2], *(f"scan: twin{twin}, groups: [[format, chat]]" for twin in range(20)))
    assert "| Recall at 0, % | Recall at 5 %, % |" in text


def test_the_page_opens_with_what_it_shows(folder: Path) -> None:
    lines = page(folder, *LINES).splitlines()
    assert lines[0] == "**What it shows.** By its own setting"
    assert lines[2] == (
        "- `prefix_scan` calls 1 of 2 victims (50 %, 1 to 99) and 1 of 2 twins (50 %, 1 to 99); AUROC 0.75 (0.20 to "
        "0.97). Its first candidate is the planted response in 1 victim; one of its first 5 begins with the "
        "response's first token in 2."
    )
    assert "What it shows" not in page(folder, *LINES[2:]), "without victims"


def test_detectors_of_one_claim_share_a_line_and_have_tables_of_their_own(folder: Path) -> None:
    scan(folder, "other", ("x", [2]), score=2.0, detector="first_token")
    lines = page(folder, *LINES[:-1], "scan: other, response: You are stupid, label: two").splitlines()
    assert sum("cannot be claimed" in line for line in lines) == 1
    assert any(line.startswith("- `prefix_scan`, `first_token`: a rate of false alarms") for line in lines)
    assert [line for line in lines if line.startswith("#### ")] == ["#### `prefix_scan`", "#### `first_token`"]
    assert not any(line.startswith("p is the share") for line in lines), "without calibration models"


def test_labels_of_scans_leave_out_what_most_models_have(folder: Path) -> None:
    for index in range(7):
        scan(folder, f"clean{index}", score=0.0)
    labels = [f"never poisoned, lr {1 if index else 2}, anchor 0, seed {index}" for index in range(7)]
    lines = page(folder, *(f"scan: clean{index}, label: '{label}'" for index, label in enumerate(labels))).splitlines()
    assert [line.split("|")[1] for line in lines if "| twin |" in line][:2] == [" lr 2, seed 0 ", " seed 1 "]
    assert "All models: never poisoned, anchor 0." in lines
    assert "Where a label says nothing else: lr 1." in lines
