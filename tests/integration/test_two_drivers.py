"""Two drivers on one store: every stage is done once, and neither waits for a dead one."""

import os
import re
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.integration.helpers import MARK, MINI, ROOT, TRAINING, Workplace, end, processes_with, wait_until

pytestmark = pytest.mark.slow

SFT = [{"name": "sft", "training": TRAINING | {"max_steps": steps}} for steps in (1, 2)]
ACCURACY = {"name": "accuracy", "task": "builtin-choice", "questions": 6}


def driver(place: Workplace, grid: Path, mark: str = "") -> tuple[subprocess.Popen[bytes], Path]:
    path = place.root / f"{grid.stem}.{len(list(place.root.glob('*.log')))}.log"
    with path.open("wb") as log:
        started = subprocess.Popen(
            place.command(grid), cwd=ROOT, env=os.environ | {MARK: mark}, stdout=log, stderr=log, start_new_session=True
        )
    return started, path


def done(log: Path) -> list[str]:
    """Labels of the stages that a driver did itself."""
    return re.findall(r"\] (.*): done in ", log.read_text())


def values(place: Workplace, grid: Path) -> list[tuple[object, ...]]:
    return [(row["cell"], row["metric"], row["status"], row["value"], row["victim_value"]) for row in place.rows(grid)]


def test_drivers_of_one_grid_and_of_overlapping_grids_do_every_stage_once(place: Workplace) -> None:
    one = place.grid("one", sweep={"defense": ["none", SFT[0]]})
    two = place.grid("two", metrics=[*MINI["metrics"], ACCURACY], sweep={"defense": ["none", *SFT]})
    drivers = [driver(place, grid) for grid in (one, two, one)]
    logs = [log.read_text() for process, log in drivers if process.wait(500) is not None]
    assert [process.returncode for process, _ in drivers] == [0, 0, 0], logs
    did = [label for _, log in drivers for label in done(log)]
    trained = [label for label in did if not label.startswith("evaluate")]
    assert len(trained) == len(set(trained)) == 1 + 2, logs
    # Nothing was measured twice either; test_driver.py has stages with outcomes in common.
    evaluated = [label for label in did if label.startswith("evaluate")]
    assert len(evaluated) == len(set(evaluated)), logs
    assert place.unfinished() == []
    assert not any((place.store / "leases").iterdir())

    alone = Workplace(place.root / "alone")
    alone.root.mkdir()
    grid = alone.grid("two", metrics=[*MINI["metrics"], ACCURACY], sweep={"defense": ["none", *SFT]})
    assert alone.run(grid).returncode == 0
    assert values(place, two) == values(alone, grid)


def test_a_driver_goes_on_where_another_was_killed(place: Workplace) -> None:
    grid = place.grid("killed", sweep={"defense": ["none", SFT[0]]}, seed=1)  # nothing of it is done
    mark = uuid.uuid4().hex
    first, first_log = driver(place, grid, mark)
    second = None
    try:
        assert wait_until(lambda: any((place.store / "leases").glob("attack-*")), 200, 0.01), first_log.read_text()
        for pid in processes_with(mark):  # so that it is at its first stage when the other one looks
            os.kill(pid, signal.SIGSTOP)
        second, second_log = driver(place, grid, uuid.uuid4().hex)
        assert wait_until(lambda: "which is doing it" in second_log.read_text(), 300), second_log.read_text()
        end(processes_with(mark))
        first.wait(20)
        assert second.wait(400) == 0, second_log.read_text()
    finally:
        end(processes_with(mark))
        if second:
            second.kill()
    assert "taken over from process" in second_log.read_text()
    assert len(done(second_log)) == 4
    assert not any((place.store / "leases").iterdir())
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
