"""Stages that never end, and runs that are told to stop: rows of what is done, a sentence, and no process left."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from benchmark.cli.app import GO_ON
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


# Each case in a fork of one process, which imports Ray once.
STARTING = """
import json, os, signal, sys
import ray
from benchmark import pipeline
from benchmark.cli.main import app
from benchmark.execution import driver

def start(**_):
    if name == "SIGTERM":
        sys.exit(15)  # which Ray's own handler does
    os.kill(os.getpid(), signal.SIGINT)

ray.init = start
for name, words, out, err in json.loads(sys.argv[1]):
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, path in enumerate((out, err), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.exit(app(words))
"""
SEARCH = {"trials": 2, "held_out_rows": 2, "space": {"defense.training.learning_rate": [1e-5, 1e-3]}}
CASES = [("SIGINT", None), ("SIGTERM", SEARCH)]  # each signal, and each kind of run
CODES = {"SIGINT": 130, "SIGTERM": 143}


def starting(place: Workplace, name: str, search: object) -> Path:
    changes = {"search": search} if search else {}
    return place.grid(f"starting-{name}-{bool(search)}", sweep={"defense": ["none", "sft"]}, seed=7, **changes)


@pytest.fixture(scope="module")
def started(place: Workplace) -> dict[Path, int]:
    """The exit codes of runs that are told to stop as Ray starts, by grid."""
    grids = {starting(place, name, search): name for name, search in CASES}
    cases = [(name, place.command(grid)[3:], f"{grid}.out", f"{grid}.err") for grid, name in grids.items()]
    done = subprocess.run(
        [sys.executable, "-c", STARTING, json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(zip(grids, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize(("name", "search"), CASES)
def test_while_ray_starts_there_are_rows_too(
    place: Workplace, started: dict[Path, int], name: str, search: object
) -> None:
    grid = starting(place, name, search)
    stdout, stderr = (Path(f"{grid}.{stream}").read_text() for stream in ("out", "err"))
    assert started[grid] == CODES[name], stdout + stderr
    assert stderr.splitlines()[-1].startswith("Interrupted: 0 of ")
    assert "### " not in stdout, "no tables"
    assert "Traceback" not in stderr
    assert {row["defense"] for row in place.rows(grid)} == {"none", "sft"}
    assert {(row["status"], row["failure"]) for row in place.rows(grid)} == {("not_run", "interrupted")}
