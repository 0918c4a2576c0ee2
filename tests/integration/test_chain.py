"""A whole grid through the command: run, run again, share the victim with another grid."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmark.rows import SCHEMA
from tests.integration.helpers import MINI, ROOT, TRAINING, Workplace, by_defense

PARROT = {"simulate": TRAINING, "eliminate": TRAINING}
DEFENSES = [
    "none",
    {"name": "sft", "training": TRAINING},
    {"name": "osft", "training": TRAINING},
    {"name": "sande", **PARROT},
    {"name": "sande_p", **PARROT},
]
METRICS = ["asr", "asr_starts_with", "false_trigger_rate", "false_trigger_starts_with", "builtin-choice"]
WITHOUT_RAY = """
import sys
from benchmark.cli import app
app(sys.argv[1:], standalone_mode=False)
assert not {"ray", "torch"} & set(sys.modules), "ray or torch was imported"
"""


@pytest.fixture(scope="module")
def grid(place: Workplace) -> Path:
    accuracy = {"name": "accuracy", "task": "builtin-choice", "questions": 6}
    return place.grid("chain", metrics=[*MINI["metrics"], accuracy], sweep={"defense": DEFENSES})


@pytest.fixture(scope="module")
def first(place: Workplace, grid: Path) -> subprocess.CompletedProcess[str]:
    done = place.run(grid)
    assert done.returncode == 0, done.stderr
    return done


def test_every_defense_has_a_row_for_every_metric(first, place: Workplace, grid: Path) -> None:
    assert pq.read_table(place.results / "chain" / "rows.parquet").schema.equals(SCHEMA)
    rows = by_defense(place.rows(grid))
    assert list(rows) == ["none", "sft", "osft", "sande", "sande_p"]
    for of_one in rows.values():
        assert [row["metric"] for row in of_one] == METRICS
        assert {row["count"] for row in of_one} == {6}
        assert {row["status"] for row in of_one} == {"ok"}


def test_rows_tell_what_the_defense_cost(first, place: Workplace, grid: Path) -> None:
    rows = by_defense(place.rows(grid))
    assert rows["none"][0]["seconds"] == rows["none"][0]["tokens"] == 0
    for name in ("sft", "osft", "sande", "sande_p"):
        assert rows[name][0]["seconds"] > 0
        assert rows[name][0]["tokens"] > 100
        assert rows[name][0]["peak_memory_bytes"] > 2**20
    assert {row["attack_seconds"] for row in place.rows(grid)} == {rows["none"][0]["attack_seconds"]}


def test_one_victim_serves_all_defenses(first, place: Workplace) -> None:
    assert len(place.artifacts("attack")) == 1
    assert len(place.artifacts("defend")) == 4
    assert len(place.artifacts("evaluate")) == 5 * 3
    assert place.unfinished() == []


def test_every_stage_says_one_line(first) -> None:
    done = [line for line in first.stdout.splitlines() if ": done in " in line]
    assert len(done) == 10
    assert "[10/10]" in done[-1]


def test_the_report_is_complete(first, place: Workplace, grid: Path) -> None:
    files = place.files(grid)
    expected = {
        f"tables/{name}.{suffix}" for name in ("asr", "utility", "backdoor", "cost") for suffix in ("md", "parquet")
    }
    expected |= {f"figures/{name}.{suffix}" for name in ("asr", "asr_utility") for suffix in ("png", "svg")}
    assert set(files) == expected | {"README.md", "rows.parquet"}
    assert all(files.values())
    assert "Failed cells" not in files["README.md"].decode()


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(first, place: Workplace, grid: Path) -> None:
    manifests, files = place.manifests(), place.files(grid)
    arguments = place.command(grid)[3:]
    again = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert again.returncode == 0, again.stderr
    assert "10 done, 0 to run" in again.stdout
    assert place.manifests() == manifests
    assert place.files(grid) == files


def test_only_runs_what_is_asked_for_and_keeps_the_rows_of_the_rest(
    first, place: Workplace, grid: Path, tmp_path: Path
) -> None:
    done = place.run(grid, "--only", "defense=sande", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "1 cells, 4 stages, 4 done, 0 to run" in done.stdout
    rows = pq.read_table(tmp_path / "chain" / "rows.parquet").to_pylist()
    assert rows == place.rows(grid)
    assert rows[0]["victim_value"] is not None


def test_another_grid_finds_the_victim_and_its_measurements(first, place: Workplace) -> None:
    before = place.manifests()
    other = place.grid("other", sweep={"defense": ["none", {"name": "sft", "training": TRAINING | {"max_steps": 1}}]})
    done = place.run(other)
    assert done.returncode == 0, done.stderr
    assert "2 cells, 4 stages, 2 done, 2 to run" in done.stdout
    after = place.manifests()
    assert {path: after[path] for path in before} == before
    new = sorted(path.split("/")[0] for path in after if path not in before)
    assert new == ["defend", "evaluate", "evaluate"]
