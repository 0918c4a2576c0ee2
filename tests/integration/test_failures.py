"""Cells that fail: each is a row with its sentence, the others are done, and only what failed is tried again."""

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.helpers import ROOT, TRAINING, Workplace, by_defense

DIVERGING = TRAINING | {"learning_rate": 1e30, "max_steps": 6}
DIVERGES = {"name": "sft", "training": DIVERGING}
POINTS = [
    ["none", TRAINING],
    [DIVERGES, TRAINING],
    [{"name": "osft", "training": TRAINING}, DIVERGING],  # of this one the attack diverges
]


@pytest.fixture(scope="module")
def grid(place: Workplace) -> Path:
    return place.grid("failing", sweep={"defense, attack.training": POINTS})


SECRETS = {name: f"planted-{name}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MY_PASSWORD")}


@pytest.fixture(scope="module")
def first(place: Workplace, grid: Path) -> subprocess.CompletedProcess[str]:
    return place.run(grid, **SECRETS)


def test_secrets_of_the_environment_are_in_no_row_log_report_or_artifact(first, place: Workplace) -> None:
    assert "planted-" not in first.stdout + first.stderr
    files = [path for folder in (place.results, place.store) for path in folder.rglob("*") if path.is_file()]
    assert {".parquet", ".md", ".json"} <= {path.suffix for path in files}
    assert any(path.name.startswith("events.") for path in files), "TensorBoard's are among them"
    assert not [path for path in files if b"planted-" in path.read_bytes()]
    assert not [
        row for row in pq.read_table(place.results / "failing/rows.parquet").to_pylist() if "planted-" in str(row)
    ]


def test_a_failed_row_says_of_which_kind(first, place: Workplace, grid: Path) -> None:
    kinds = {name: rows[0]["failure"] for name, rows in by_defense(place.rows(grid)).items()}
    assert kinds == {"none": None, "sft": "non-finite loss", "osft": "non-finite loss"}


def test_the_exit_code_says_that_some_cell_failed(first) -> None:
    assert first.returncode == 1
    assert first.stderr.splitlines()[-1] == "2 of 3 cells failed; the same command retries them"


def test_what_does_not_depend_on_a_failure_is_done(first, place: Workplace, grid: Path) -> None:
    rows = by_defense(place.rows(grid))
    assert {row["status"] for row in rows.pop("none")} == {"ok"}
    for failed in rows.values():
        assert {row["status"] for row in failed} == {"failed"}
        assert [row["metric"] for row in failed] == [
            "asr",
            "asr_starts_with",
            "false_trigger_rate",
            "false_trigger_starts_with",
        ]
        assert {row["value"] for row in failed} == {None}


@pytest.mark.parametrize(
    ("defense", "begin"),
    [
        ("sft", "stage sft: "),
        ("osft", "stage attack: "),
    ],
)
def test_a_failed_row_has_its_error_in_one_line(first, place: Workplace, grid: Path, defense: str, begin: str) -> None:
    error = by_defense(place.rows(grid))[defense][0]["error"]
    assert error.startswith(begin)
    assert "\n" not in error


def test_a_diverged_stage_leaves_no_traceback(first) -> None:
    assert "Traceback" not in first.stdout + first.stderr


def test_the_report_lists_failed_cells_with_their_errors(first, place: Workplace, grid: Path) -> None:
    page = (place.results / "failing" / "README.md").read_text()
    assert "stage attack: " in page
    assert "| `sft` | failed |" in page.replace("– | failed", "failed")


@pytest.mark.slow
def test_the_same_command_tries_only_what_failed(first, place: Workplace, grid: Path) -> None:
    before, rows = place.manifests(), place.rows(grid)
    again = place.run(grid)
    assert again.returncode == 1
    assert place.manifests() == before
    assert place.rows(grid) == rows
    assert place.unfinished() == []


def test_a_mended_cell_keeps_the_victim(first, place: Workplace, grid: Path) -> None:
    mended = place.grid("mended", sweep={"defense": ["none", DIVERGES | {"training": TRAINING}]})
    command = ["plan" if word == "run" else word for word in place.command(mended)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert shown.returncode == 0, shown.stderr
    found = " ".join(shown.stdout.split())
    assert "2 cells, 4 stages, 2 done; to run: 0 attack, 1 defend, 1 evaluate" in found, "another grid finds the victim"
