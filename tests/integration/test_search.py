"""A real search on Tune with ASHA, through the command: its value goes into the cell, and it is done once."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.helpers import TRAINING, Workplace, by_defense

pytestmark = pytest.mark.slow

RATE = "defense.eliminate.learning_rate"
SANDE = {"name": "sande", "simulate": TRAINING, "eliminate": TRAINING | {"max_steps": 8}}
LENGTH = "defense.eliminate.max_length"  # no row is as short as 8 tokens
SEARCH = {"trials": 4, "held_out_rows": 8, "space": {LENGTH: [8, 1024], RATE: [1e-5, 1e-2]}}
NO_ROW = "eliminate: no row is shorter than max_length=8 tokens; set it higher"


@pytest.fixture(scope="module")
def grid(place: Workplace) -> Path:
    return place.grid("searched", search=SEARCH, sweep={"defense": ["none", SANDE]})


@pytest.fixture(scope="module")
def first(place: Workplace, grid: Path) -> subprocess.CompletedProcess[str]:
    done = place.run(grid, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_all_trials_are_told_and_failed_ones_with_their_error(first, place: Workplace) -> None:
    trials = pq.read_table(place.results / "searched" / "search.parquet").to_pylist()
    found = {tuple(json.loads(trial["values"]).values()): trial for trial in trials}
    assert set(found) == {(1e-5, 8), (1e-2, 8), (1e-5, 1024), (1e-2, 1024)}
    assert [(found[rate, 8]["state"], found[rate, 8]["error"]) for rate in (1e-5, 1e-2)] == [("failed", NO_ROW)] * 2
    assert [trial["best"] for trial in trials] == [True, False, False, False]
    assert found[1e-2, 1024]["best"]
    assert len(found[1e-2, 1024]["losses"]) == 4
    assert found[1e-5, 1024]["state"] in ("finished", "stopped")  # finished, if it was the first to report
    assert all(trial["seconds"] > 0 and trial["device"] for trial in trials if trial["state"] != "failed")


def test_the_cell_is_run_with_the_best_value_and_no_other(first, place: Workplace, grid: Path) -> None:
    (sande,) = {row["settings"] for row in by_defense(place.rows(grid))["sande"]}
    assert json.loads(sande)["defense"]["eliminate"]["learning_rate"] == 1e-2
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
    levels = {(row["defense"], row["knows"], row["searched"]) for row in place.rows(grid)}
    assert levels == {("none", "nothing", None), ("sande", "response", "response")}
    assert [len(place.artifacts(kind)) for kind in ("attack", "defend", "search")] == [1, 1, 1]
    assert place.unfinished() == []


def test_the_report_has_a_section_on_it(first, place: Workplace) -> None:
    assert "### Learning-rate search" in first.stdout
    page = (place.results / "searched" / "README.md").read_text()
    assert "### Learning-rate search" in page
    assert "| **best** |" in page


def test_a_second_run_searches_nothing(first, place: Workplace, grid: Path) -> None:
    manifests, files = place.manifests(), place.files(grid)
    again = place.run(grid)
    assert again.returncode == 0, again.stderr
    assert "4 done, 0 to run" in again.stdout
    assert place.manifests() == manifests
    assert place.files(grid) == files


def test_where_every_trial_fails_the_cell_is_a_failed_row(first, place: Workplace) -> None:
    grid = place.grid("hopeless", search=SEARCH | {"space": {LENGTH: [8]}}, sweep={"defense": ["none", SANDE]})
    done = place.run(grid, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "1 of 2 cells failed; the same command retries them"
    assert "Traceback" not in done.stdout + done.stderr
    rows = by_defense(place.rows(grid))
    assert {row["status"] for row in rows["none"]} == {"ok"}
    assert {row["status"] for row in rows["sande"]} == {"failed"}
    assert rows["sande"][0]["error"] == f"search: all 1 trials failed, the first: {NO_ROW}"
    assert len(place.artifacts("search")) == 1
