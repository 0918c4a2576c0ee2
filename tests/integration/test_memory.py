"""Real Ray: stages out of memory run again alone, and stages whose memory was measured share a GPU.

A subclass of the trial plays the shortage, in a driver of the test's own; the GPU is one that Ray only counts.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.helpers import ROOT, TRAINING, Workplace, by_defense

pytestmark = pytest.mark.slow

COMMON = """
import functools, json, os, signal, sys, time
from pathlib import Path

import ray
from benchmark.execution import driver, trial
from benchmark.cli.main import app
from benchmark.plan.stage import Stage

class Logged(trial.StageTrial):
    def note(self, **what):
        with (LOG / f"{os.getpid()}.jsonl").open("a") as file:
            key = self._job.stage.key
            file.write(json.dumps({"key": key, "share": self._job.share, **what}) + "\\n")

LOG = Path(sys.argv[1])
"""

# Defenses that find memory only if no other of them runs at the same time.
GREEDY = (
    COMMON
    + """
HOW = sys.argv[2]

class Greedy(Logged):
    def _train(self, stage):
        if stage.kind == "attack":
            return super()._train(stage)
        key, begin = stage.key, time.time()
        again = any(key in file.read_text() for file in LOG.glob("*.jsonl"))
        mark = LOG / f"{key}.running"
        mark.touch()
        try:
            while len(list(LOG.glob("*.running"))) < 2 and time.time() < begin + (1 if again else 100):
                time.sleep(0.05)
            if len(list(LOG.glob("*.running"))) > 1:
                time.sleep(1)  # so that the other one sees this one
                self.note(begin=begin, end=time.time(), good=False)
                if HOW == "killed":
                    mark.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            super()._train(stage)
            self.note(begin=begin, end=time.time(), good=True)
        finally:
            mark.unlink(missing_ok=True)

driver.StageTrial = Greedy
ray.init = functools.partial(ray.init, num_cpus=2)
app(sys.argv[3:])
"""
)

# Attacks that only take their time, and say that they took a fifth of a GPU's memory.
SHARING = (
    COMMON
    + """
from benchmark.grid.cell import Cell
from benchmark.grid.resources import Resources
from benchmark.plan.plan import Plan
from benchmark.store.local import LocalStore

class Sharing(Logged):
    def step(self):
        stage, begin = self._job.stage, time.time()
        time.sleep(4)
        manifest = {"kind": "attack", "settings": stage.settings, "seconds": 4.0}
        manifest |= {"peak_memory_bytes": int(15e9), "device_memory_bytes": int(80e9)}
        LocalStore(Path(self._job.settings.store)).put("attack", stage.key, lambda folder: manifest)
        self.note(begin=begin, end=time.time(), gpus=ray.get_gpu_ids())
        return {"ok": 1, "done": True}

driver.StageTrial = Sharing
ray.init = functools.partial(ray.init, num_cpus=4, num_gpus=1)
stages = [Stage("attack", f"key{seed}", Cell.parse({"model": "tiny", "seed": seed}).settings()) for seed in range(7)]
plan = Plan((), {stage.key: stage for stage in stages}, frozenset())
print(driver.run(plan, LocalStore(Path(sys.argv[2])), Resources(), None, print))
"""
)


def drive(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    """What the trials noted, in the order of their ends."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda note: note["end"])


def overlapping(one: dict[str, Any], notes: list[dict[str, Any]]) -> int:
    """How many others ran while this one did."""
    return sum(note["begin"] < one["end"] and one["begin"] < note["end"] for note in notes if note is not one)


@pytest.mark.parametrize(("how", "reason"), [("error", "out of memory"), ("killed", "the worker process died")])
def test_stages_without_memory_run_again_alone(place: Workplace, how: str, reason: str) -> None:
    defenses = ["none", *({"name": name, "training": TRAINING} for name in ("sft", "osft"))]
    grid = place.grid(how, seed=["error", "killed"].index(how), sweep={"defense": defenses})
    log = place.root / f"log-{how}"
    log.mkdir()
    done = drive(GREEDY, log, how, *place.command(grid)[3:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{reason}; again, alone") == 2
    assert "Traceback" not in done.stdout + done.stderr
    rows = by_defense(place.rows(grid))
    assert rows.keys() == {"none", "sft", "osft"}
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
    notes = logged(log)
    assert sorted(note["good"] for note in notes) == [False, False, True, True]
    assert [overlapping(note, notes) for note in notes if note["good"]] == [0, 0]
    assert place.unfinished() == []


def test_stages_share_a_gpu_once_one_of_them_was_measured(tmp_path: Path) -> None:
    for name in ("log", "store"):
        (tmp_path / name).mkdir()
    done = drive(SHARING, tmp_path / "log", tmp_path / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "{}"
    first, *others = logged(tmp_path / "log")
    assert first["share"] == 1.0
    assert overlapping(first, others) == 0
    assert {note["share"] for note in others} == {0.25}
    assert {tuple(note["gpus"]) for note in [first, *others]} == {(0,)}
    assert max(overlapping(note, others) for note in others) >= 2, "at least three at a time, of four that fit"
