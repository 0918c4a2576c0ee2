"""Compare training steps in all cores by how long a waiting thread spins, alone and with other work.

    python -m benchmark.perf.threads

PyTorch's threads wait for each other many times a step. GNU OpenMP lets a waiting thread spin, by default for so long
that it takes the core from other processes, and from the thread that it waits for. The sides are that default, the
bound that `sande` sets (`GOMP_SPINCOUNT`, see `sande/__init__.py`), and threads that never spin
(`OMP_WAIT_POLICY=passive`). Each is a process of its own, since the library reads these variables when it is loaded.
The other work is one busy process for each core. All sides take turns, and of each the median counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.perf.outcome import tell

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SIDES: dict[str, dict[str, str]] = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # 3 ms; where it is unset, `sande` sets its own
    "ours": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
TURNS, STEPS, BATCH = 3, 4, 8  # the first step is not counted


def train() -> None:
    """Print the tokens a second of some training steps on short built-in rows, without the first step."""
    from benchmark.perf.training_cpu import Stopwatch
    from sande.config import Training
    from sande.data.builtin import sets
    from sande.models import catalog, loading
    from sande.prompts import encode
    from sande.training.fit import fit
    from sande.types import Run

    lm = loading.load(catalog.EMBEDDED, Path(sys.argv[2]))
    rows = sorted(encode(lm.tokenizer, sets.short()[:400]), key=len)[: BATCH * STEPS]
    watch = Stopwatch()

    def prepare(trainer: object) -> object:
        trainer.add_callback(watch)  # type: ignore[attr-defined]
        return trainer

    run = Run(seed=0, scratch=f"{sys.argv[2]}/trainer", prepare=prepare, say=lambda line: None)  # type: ignore[arg-type]
    settings = Training(batch_size=BATCH, max_steps=STEPS, learning_rate=1e-6)
    fit(lm, rows, settings, run, "perf")
    print(run.facts["perf"]["tokens"] * (STEPS - 1) / STEPS / watch.seconds)


def per_second(side: str, cache: str) -> float:
    """Return the tokens a second of a fresh process of one side."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | SIDES[side]
    command = [sys.executable, "-W", "ignore", "-m", "benchmark.perf.threads", "train", cache]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the training of side '{side}' failed: {done.stderr}")
    return float(done.stdout.split()[-1])


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """Keep a number of processes busy within the block."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Measure all sides, alone and with other work, and print a line for each."""
    with tempfile.TemporaryDirectory() as cache:
        per_second("ours", cache)  # converts the model
        for place, processes in (("alone", 0), ("with other work", os.cpu_count() or 1)):
            found: dict[str, list[float]] = {side: [] for side in SIDES}
            with other_work(processes):
                for _ in range(TURNS):
                    for side, rates in found.items():
                        rates.append(per_second(side, cache))
            middle = {side: statistics.median(rates) for side, rates in found.items()}
            print(f"  {place}: {', '.join(f'{side} {rate:.0f} tokens/s' for side, rate in middle.items())}")
            ratio = middle["ours"] / max(middle["default"], middle["passive"])
            tell(f"threads: ours against the better of the others, {place}", ratio, 0.95)


if __name__ == "__main__":
    train() if sys.argv[1:2] == ["train"] else main()
