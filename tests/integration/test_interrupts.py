"""Stages that never end, and runs that are told to stop: rows of what is done, a sentence, and no process left."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from benchmark.cli.app import GO_ON
from benchmark.execution import signals
from benchmark.plan.failures import UNFINISHED
from tests.integration.helpers import MARK, ROOT, TRAINING, Workplace, by_defense, end, processes_with, wait_until

ENDLESS = TRAINING | {"max_steps": 10**6, "learning_rate": 1e-6}
GONE = 60  # seconds


def grid_of(place: Workplace, name: str, **changes: object) -> Path:
    """A victim that is soon made, and beside it a defense that is not."""
    return place.grid(name, sweep={"defense": ["none", {"name": "sft", "training": ENDLESS}]}, **changes)


@pytest.mark.slow
def test_a_stage_that_never_ends_is_stopped_and_its_row_says_so(place: Workplace) -> None:
    grid = grid_of(place, "endless", resources={"cpus": 1, "timeout": 25})
    done = place.run(grid, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = by_defense(place.rows(grid))
    assert {(row["status"], row["failure"]) for row in rows["none"]} == {("ok", None)}
    assert {(row["status"], row["failure"], row["error"]) for row in rows["sft"]} == {
        ("failed", "timeout", "it took longer than resources.timeout, 25 s, and was stopped")
    }
    assert done.stdout.count("FAILED: it took longer") == 1, "it is not tried again"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_writes_its_rows_and_leaves_nothing_behind(
    place: Workplace, number: signal.Signals, code: int
) -> None:
    grid = grid_of(place, f"stopped-{code}", seed=code)
    mark = uuid.uuid4().hex
    with (place.root / f"{code}.log").open("w+") as log:
        running = subprocess.Popen(
            place.command(grid), cwd=ROOT, env=os.environ | {MARK: mark}, stdout=log, stderr=subprocess.PIPE, text=True
        )
        try:
            done = place.root / f"{code}.log"
            assert wait_until(lambda: ": done in " in done.read_text() or running.poll() is not None, 200)
            assert wait_until(lambda: done.read_text().count(": done in ") == 2, 100), done.read_text()
            names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_with(mark)]
            assert [name for name in names if name.startswith("ray::defend tiny sft ")], (
                "what a process does is its name"
            )
            running.send_signal(number)
            _, said = running.communicate(timeout=GONE)
            assert running.returncode == code
            assert said == (
                f"Interrupted: 2 of 4 stages are done, 2 are left. Run the same command to continue: "
                f"sande-bench {' '.join(place.command(grid)[3:])}. Measured so far: "
                f"{place.results}/{grid.stem}/README.md\n"
            )
            assert wait_until(lambda: not processes_with(mark), GONE), processes_with(mark)
        finally:
            end(processes_with(mark))
    rows = by_defense(place.rows(grid))
    assert {row["status"] for row in rows["none"]} == {"ok"}
    assert {(row["status"], row["failure"]) for row in rows["sft"]} == {("not_run", "interrupted")}
    assert rows["sft"][0]["error"] == UNFINISHED
    assert place.unfinished() == []


BEFORE = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[2]))
from benchmark.cli.main import app
from benchmark.grid import load
load.load_grid = lambda *_: os.kill(os.getpid(), getattr(signal, sys.argv[1]))
app(["run", "grids/smoke.yaml"])
"""


@pytest.mark.parametrize(
    ("name", "sigint", "code"),
    [
        ("SIGINT", "default_int_handler", 130),
        ("SIGTERM", "default_int_handler", 143),
        ("SIGTERM", "SIG_IGN", 143),  # what a script starts with `&` has it so
    ],
)
def test_before_anything_runs_it_is_the_same_sentence(name: str, sigint: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEFORE, name, sigint], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert done.stderr == f"{GO_ON}\n"


STARTING = """
import os, signal, sys
import ray
from benchmark.cli.main import app

def start(**_):
    if sys.argv[1] == "SIGTERM":
        sys.exit(15)  # which Ray's own handler does
    os.kill(os.getpid(), signal.SIGINT)

ray.init = start
app(sys.argv[2:])
"""
SEARCH = {"trials": 2, "held_out_rows": 2, "space": {"defense.training.learning_rate": [1e-5, 1e-3]}}


@pytest.mark.parametrize(
    ("name", "code", "changes"),  # each signal, and each kind of run
    [("SIGINT", 130, {}), pytest.param("SIGTERM", 143, {"search": SEARCH}, marks=pytest.mark.slow)],
)
def test_while_ray_starts_there_are_rows_too(
    place: Workplace, name: str, code: int, changes: dict[str, object]
) -> None:
    grid = place.grid(f"starting-{name}", sweep={"defense": ["none", "sft"]}, seed=7, **changes)
    command = [sys.executable, "-c", STARTING, name, *place.command(grid)[3:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("Interrupted: 0 of ")
    assert "### " not in done.stdout, "no tables"
    assert "Traceback" not in done.stderr
    assert {row["defense"] for row in place.rows(grid)} == {"none", "sft"}
    assert {(row["status"], row["failure"]) for row in place.rows(grid)} == {("not_run", "interrupted")}


def test_a_signal_waits_for_the_end_of_what_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    before, passed = signal.getsignal(signal.SIGINT), []

    def interrupted(times: int) -> None:
        with signals.held():
            for number in range(times):
                signal.raise_signal(signal.SIGINT)
                passed.append(f"signal {number + 1} of {times}")

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(times)
    assert passed == ["signal 1 of 1", "signal 1 of 2"], "a second one does not wait"
    assert signals.exit_code() == 130
    with pytest.raises(KeyboardInterrupt), signals.held():
        sys.exit(15)  # what Ray's handler of SIGTERM does
    assert signals.exit_code() == 143
    assert signal.getsignal(signal.SIGINT) == before
