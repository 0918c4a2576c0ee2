"""Compare the wall time that `plan --gpus` predicts for a grid with the time that `run` then prints.

A first run makes the measurements: grids/smoke.yaml with one seed, into a new store. Then the same grid with three
seeds, of which one is done, is predicted from that store for one worker, and run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmark.forecast import wall_time
from benchmark.grid.load import load_grid
from benchmark.perf.outcome import tell
from benchmark.plan import plan
from benchmark.store.local import LocalStore

SMOKE = Path("grids/smoke.yaml")


def main() -> None:
    """Run, predict, run, and print the error of the prediction."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        more = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
        more["sweep"]["seed"] = [0, 1, 2]
        three = folder / "three.yaml"
        three.write_text(yaml.safe_dump(more), encoding="utf-8")

        _run(SMOKE, folder)
        loaded, store = load_grid(three), LocalStore(folder / "store", create=False)
        made = plan.make_plan(loaded.cells, store)
        predicted = wall_time.predict(made, store, loaded.resources, 1, None)
        took = _run(three, folder)

        assert sum(predicted.basis.values()) == len(made.missing) == 20, "two of three seeds, all from measurements"
        assert not plan.make_plan(loaded.cells, store).missing, "the run did what was predicted"
        tell(
            f"prediction of a real run's wall time ({predicted.wall:.0f} s for {took:.0f} s), off by",
            100 * abs(predicted.wall - took) / took,
            20,
            "%",
            at_most=True,
        )


def _run(path: Path, folder: Path) -> float:
    """Run a grid, and return the seconds that it prints."""
    folders = ["--store", str(folder / "store"), "--results", str(folder / "results")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "run", str(path), *folders], capture_output=True, text=True, check=True
    )
    found = re.search(r"took (\d+) s$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return float(found[1])


if __name__ == "__main__":
    main()
