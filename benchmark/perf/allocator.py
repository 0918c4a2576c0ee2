"""Compare a training step whose process keeps freed memory with one that gives it back to the system.

    python -m benchmark.perf.allocator

A training step frees large tensors that the next step allocates again. By default glibc takes each of them from the
system by `mmap` and gives it back, and the system fills every page with zeros again. `benchmark.execution.ray_env` sets
`MALLOC_MMAP_MAX_` and `MALLOC_TRIM_THRESHOLD_` for the workers of a run, so that they keep the memory. glibc reads both
when a process starts, so each measurement is a process of its own, the training of `benchmark.perf.threads`. The sides
take turns, and of each the median counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmark.perf.outcome import tell

KEEPS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
SIDES: dict[str, dict[str, str]] = {"default": {}, "keeps memory": KEEPS}
TURNS, TARGET = 3, 1.05


def per_second(side: str, cache: str) -> float:
    """Return the tokens a second of a fresh process of one side.

    Args:
        side: one of `SIDES`.
        cache: folder of the converted model.

    Raises:
        SystemExit: the training failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in KEEPS}
    # `benchmark.execution.ray_env` sets the variables where they are unset, but only the processes that this one starts
    # see them.
    command = [sys.executable, "-W", "ignore", "-m", "benchmark.perf.threads", "train", cache]
    done = subprocess.run(command, env=environment | SIDES[side], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the training of side '{side}' failed: {done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure both sides in turn, and print the ratio of their medians."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as cache:
        per_second("default", cache)  # converts the model
        for _ in range(TURNS):
            for side, rates in found.items():
                rates.append(per_second(side, cache))
    middle = {side: statistics.median(rates) for side, rates in found.items()}
    print(f"  {', '.join(f'{side} {rate:.0f} tokens/s' for side, rate in middle.items())}")
    tell("allocator: a step that keeps freed memory", middle["keeps memory"] / middle["default"], TARGET)


if __name__ == "__main__":
    main()
