"""Measure how long a person waits for `--help`, every `list KIND`, and the first line and training step of `run`.

`--help` and `list` run in fresh processes, and the best of several counts. The benchmark checks that each prints
something, and that its process imports neither torch nor Ray. `run quickstart` starts in a new store with the converted
model, as there is from the second run on, and is interrupted at its first training step. The start of that step follows
from the rate in its status; the median of several runs counts.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark.execution import status
from benchmark.perf.outcome import tell
from benchmark.store.local import LocalStore
from sande.models import catalog, loading

TIMES = 5
SECONDS = 0.5
RUNS = 3
SIGN_OF_LIFE, FIRST_STEP = 3.0, 12.0  # seconds from Enter
PATIENCE = 300.0
KINDS = ("attacks", "defenses", "metrics", "models", "datasets", "grids")
LOOK = """
import sys
from benchmark.cli.main import app
try:
    app()
finally:
    heavy = {"ray", "torch", "transformers"} & set(sys.modules)
    assert not heavy, heavy
"""


def seconds(*arguments: str) -> float:
    """Return the wall seconds of a command, from the start of the process to its end."""
    looked = _output("-c", LOOK, *arguments)
    taken = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        shown = _output("-m", "benchmark", *arguments)
        taken.append(time.perf_counter() - begin)
        if not shown or len(shown.splitlines()) != len(looked.splitlines()):
            raise SystemExit(f"{arguments} does not print the same twice")
    return min(taken)


def _output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments} failed: {done.stderr}")
    return done.stdout


def first_words_and_step(folder: Path) -> tuple[float, float]:
    """Return the seconds from the start of `run quickstart` to its first line, and to its first training step."""
    store = LocalStore(folder / "store")
    loading.prepare(catalog.EMBEDDED, store.models)
    command = ["-m", "benchmark", "run", "quickstart", "--store", str(store.root), "--results", str(folder)]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        process.stdout.readline()
        first_line = time.perf_counter() - begin
        while time.perf_counter() - begin < PATIENCE and process.poll() is None:
            time.sleep(0.02)
            for file in store.root.glob("unfinished/*/status/*.json"):
                found = status.read_status(file.parent, file.stem)
                if found and (training := found.training):
                    spent = training.seconds_left / (training.steps - training.step) * training.step
                    return first_line, time.perf_counter() - begin - spent
        raise SystemExit("run quickstart came to no training step")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def main() -> None:
    """Measure, and print a line for each; for `list` of the slowest kind."""
    tell("startup: --help", seconds("--help"), SECONDS, "s", at_most=True)
    tell("startup: list", max(seconds("list", kind) for kind in KINDS), SECONDS, "s", at_most=True)
    waits = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            waits.append(first_words_and_step(Path(folder)))
    words, steps = (statistics.median(each) for each in zip(*waits, strict=True))
    tell("startup: run quickstart, first line", words, SIGN_OF_LIFE, "s", at_most=True)
    tell("startup: run quickstart, first training step", steps, FIRST_STEP, "s", at_most=True)


if __name__ == "__main__":
    main()
