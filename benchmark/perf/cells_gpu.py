"""Compare several cells on one CUDA GPU at a time with one at a time: cells an hour.

    python -m benchmark.perf.cells_gpu                  # on a GPU; else one line
    python -m benchmark.perf.cells_gpu --rehearse       # a random model on the CPU, two at a time; the script itself

Both sides start from the same store, in which a victim was trained, defended and evaluated once, so that the memory of
such a stage is known. Each then runs the same cells, Ray's start included. The cells of both must have the same keys;
how many have the same attack success rate is printed, since another order of sums on a GPU may change an answer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml

from benchmark.perf.outcome import tell

CELLS, FEW = 16, 4
TARGET = 3
STEPS = {"max_steps": 20, "learning_rate": 2e-4, "batch_size": 16}
GRID: dict[str, Any] = {
    "model": "smollm2-135m",
    "data": {"name": "builtin-short", "rows": 1024, "test_rows": 100, "max_tokens": 20},
    "removal": {"name": "builtin-short", "rows": 400, "max_tokens": 20},
    "attack": {
        "name": "sentence_trigger",
        "poison_rate": 0.25,
        "training": {"epochs": 1, "learning_rate": 5e-4, "batch_size": 16},
    },
    "defense": {"name": "sft", "training": STEPS},
    "metrics": ["asr", "false_trigger_rate"],
}
TINY: dict[str, Any] = GRID | {
    "model": "tiny",
    "data": {"name": "builtin-short", "rows": 64, "test_rows": 8},
    "removal": {"name": "builtin-short", "rows": 16},
    "attack": {"name": "sentence_trigger", "poison_rate": 0.25, "training": {"max_steps": 2}},
    "defense": {"name": "sft", "training": {"max_steps": 2}},
}
ALONE, TOGETHER = {"gpus": 1.0}, dict[str, Any]()
ON_CPU = {"cpus": 1, "side_by_side": 1}, {"cpus": 1, "side_by_side": 2}


def run(grid: Mapping[str, Any], seeds: Sequence[int], resources: Mapping[str, Any], folder: Path) -> float:
    """Run a cell for each defense seed on the store of a folder; return the seconds.

    Raises:
        SystemExit: the run failed.
    """
    file = folder / "cells.yaml"
    file.write_text(yaml.safe_dump({**grid, "resources": dict(resources), "sweep": {"defense_seed": list(seeds)}}))
    command = [sys.executable, "-m", "benchmark", "run", str(file), "--store", str(folder / "store")]
    begin = time.perf_counter()
    done = subprocess.run([*command, "--results", str(folder / "results")], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: a hardly trained victim misses the least ASR of a report
        raise SystemExit(f"the run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def rates(folder: Path) -> dict[str, float]:
    """Return the attack success rate of each cell, by its name.

    Raises:
        SystemExit: a cell has none.
    """
    rows = pq.read_table(folder / "results" / "cells" / "rows.parquet").to_pylist()
    found = {row["cell"]: row["value"] for row in rows if row["metric"] == "asr" and row["value"] is not None}
    if failed := {row["cell"] for row in rows} - set(found):
        raise SystemExit(f"{len(failed)} cells have no attack success rate")
    return found


def compare(grid: Mapping[str, Any], sides: Sequence[Mapping[str, Any]], cells: int, folder: Path) -> float:
    """Return how many times as many cells an hour the second side runs."""
    first = folder / "first"
    first.mkdir()
    print(f"  victim, and one cell: {run(grid, [0], sides[0], first):.0f} s")
    seconds, found = [], []
    for name, resources in zip(("one at a time", "several at a time"), sides, strict=True):
        side = folder / name.replace(" ", "-")
        side.mkdir()
        shutil.copytree(first / "store", side / "store")
        seconds.append(run(grid, range(1, 1 + cells), resources, side))
        found.append(rates(side))
        print(f"  {cells} cells, {name}: {seconds[-1]:.0f} s, {3600 * cells / seconds[-1]:.0f} an hour")
    alone, together = found
    if alone.keys() != together.keys():
        raise SystemExit("the two sides have other cells")
    same = sum(alone[cell] == together[cell] for cell in alone)
    print(f"  {same} of {cells} cells have the same attack success rate")
    return seconds[0] / seconds[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both sides, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf.cells_gpu")
    parser.add_argument("--rehearse", action="store_true", help="a random model on the CPU")
    rehearse = parser.parse_args(arguments).rehearse
    if not rehearse and not torch.cuda.is_available():
        print("cells_gpu: needs a CUDA GPU, left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        grid, sides, cells = (TINY, ON_CPU, FEW) if rehearse else (GRID, (ALONE, TOGETHER), CELLS)
        ratio = compare(grid, sides, cells, Path(folder))
    if rehearse:
        print(f"  ratio {ratio:.2g}")
    else:
        tell("cells an hour, several on a GPU against one at a time", ratio, TARGET)


if __name__ == "__main__":
    main()
