"""How long `sande-bench --help` and every `sande-bench list KIND` take, each in fresh processes, the best of several.

There is no other side: the measure is a person who waits. Checked is that each prints something, and that neither torch
nor Ray is among the modules of the process that did.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmark.perf.outcome import tell

TIMES = 5
SECONDS = 0.5
KINDS = ("attacks", "defenses", "metrics", "models", "datasets", "grids")
LOOK = """
import sys
from benchmark.cli import app
try:
    app()
finally:
    heavy = {"ray", "torch", "transformers"} & set(sys.modules)
    assert not heavy, heavy
"""


def seconds(*arguments: str) -> float:
    """Wall seconds of the command, from the start of the process to its end."""
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


def main() -> None:
    """Measure and tell; of `list` the slowest kind."""
    tell("startup: --help", seconds("--help"), SECONDS, "s", at_most=True)
    tell("startup: list", max(seconds("list", kind) for kind in KINDS), SECONDS, "s", at_most=True)


if __name__ == "__main__":
    main()
