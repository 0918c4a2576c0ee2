"""A defense with parts in a whole run: parts side by side, a run that goes on, and a part that fails."""

import json
import os
import re
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import ensemble
from tests.integration.helpers import MARK, ROOT, TRAINING, Workplace, by_defense, end, processes_with, wait_until

pytestmark = pytest.mark.slow
SIDE_BY_SIDE = {"cpus": 1, "side_by_side": 2}


@pytest.fixture(scope="module")
def path(place: Workplace) -> dict[str, str]:
    """The environment of a process in which the defense is installed."""
    return {"PYTHONPATH": f"{ensemble.installed(place.root / 'site')}{os.pathsep}{ROOT}"}


def of(models: int, **training: Any) -> dict[str, Any]:
    return {"name": "ensemble", "models": models, "training": TRAINING | training, "repair": TRAINING}


def done(output: str) -> list[str]:
    """Kind and part of the stages that a run did, in the order in which they ended."""
    return re.findall(r"\] ((?:attack|part|defend|evaluate)(?: tiny ensemble model_\d)?).*: done in ", output)


def test_a_run_killed_among_its_parts_goes_on_and_keeps_those_that_are_done(
    place: Workplace, path: dict[str, str]
) -> None:
    grid = place.grid("killed", defense=of(3), resources=SIDE_BY_SIDE)
    mark = uuid.uuid4().hex
    with (place.root / "log").open("wb") as log:
        driver = subprocess.Popen(
            place.command(grid), cwd=ROOT, env=os.environ | path | {MARK: mark}, stdout=log, stderr=log
        )
    try:
        assert wait_until(lambda: bool(place.artifacts("part")) or driver.poll() is not None, 200, pause=0.01)
        driver.send_signal(signal.SIGKILL)
        driver.wait(20)
    finally:
        end(processes_with(mark))
    assert driver.returncode == -signal.SIGKILL, (place.root / "log").read_text()
    there = {folder.name for folder in place.artifacts("part")}
    assert 1 <= len(there) < 3
    assert not place.artifacts("defend")

    again = place.run(grid, **path)
    assert again.returncode == 0, again.stdout + again.stderr
    parts = [stage for stage in done(again.stdout) if stage.startswith("part")]
    assert len(parts) == 3 - len(there)
    assert done(again.stdout).index("defend") > done(again.stdout).index(parts[-1])
    assert place.artifacts("part") == [], "they are dropped once the defense is done"
    rows = by_defense(place.rows(grid))["ensemble"]
    assert {row["status"] for row in rows} == {"ok"}
    assert place.unfinished() == []

    repeated = place.run(grid, **path)
    assert done(repeated.stdout) == [], "neither a part nor the report is missing"
    assert place.rows(grid) == by_defense(place.rows(grid))["ensemble"]


def test_the_rows_are_those_of_a_run_one_after_the_other(place: Workplace, path: dict[str, str]) -> None:
    alone = Workplace(place.root / "alone")
    alone.root.mkdir()
    grid = alone.grid("killed", defense=of(3))
    assert alone.run(grid, **path).returncode == 0
    keys = ("cell", "metric", "value", "victim_value", "tokens")
    expected, found = ([[row[key] for key in keys] for row in each.rows(grid)] for each in (alone, place))
    assert found == expected
    (stage,) = alone.artifacts("defend")
    row, manifest = alone.rows(grid)[0], json.loads((stage / "manifest.json").read_text())
    costs = list(manifest["parts"].values())
    assert len(costs) == 3
    assert row["seconds"] == pytest.approx(manifest["seconds"] + sum(each["seconds"] for each in costs), abs=1e-3)
    assert row["tokens"] == manifest["tokens"] + sum(each["tokens"] for each in costs)


def test_a_failed_part_is_a_row_with_its_error_and_stops_no_other_cell(place: Workplace, path: dict[str, str]) -> None:
    diverges = of(2, learning_rate=1e30, max_steps=6)
    grid: Path = place.grid("failing", sweep={"defense": [diverges, {"name": "sft", "training": TRAINING}]})
    run = place.run(grid, **path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    rows = by_defense(place.rows(grid))
    assert {row["status"] for row in rows["sft"]} == {"ok"}
    assert {(row["status"], row["failure"]) for row in rows["ensemble"]} == {("failed", "non-finite loss")}
    assert rows["ensemble"][0]["error"].startswith("stage apart: ")
