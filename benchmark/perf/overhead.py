"""Measure the overhead of a cell in a run of many: seconds apart from its stages, and memory of the driver.

The grid has small cells on the random model: one victim, and a defense of one step at many learning rates, so that each
cell is two stages. The seconds are those that the run itself records: wall time of a stage less the seconds in its
manifest, the median over all stages but the first. The memory is the driver's, read from outside at each line that it
prints. Its growth is the slope over the second half of the run, times the trials after which a Tuner releases its
memory. The benchmark checks that every cell is done.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmark.execution.driver import TRIALS_OF_A_TUNER
from benchmark.perf.outcome import tell

CELLS = 100
STAGES_OF_A_CELL = 3  # attack, defend, evaluate; here all share one attack
GRID: dict[str, Any] = {
    "model": "tiny",
    "data": {"name": "builtin-short", "rows": 32, "test_rows": 4},
    "removal": {"name": "builtin-short", "rows": 8},
    "attack": {"name": "sentence_trigger", "training": {"max_steps": 1}},
    "metrics": ["asr"],
    "sweep": {
        "defense": [
            {"name": "sft", "training": {"max_steps": 1, "learning_rate": round(1e-5 * (1 + n), 8)}}
            for n in range(CELLS)
        ]
    },
}


def main() -> None:
    """Run, and print the seconds per cell and the growth of memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = folder / "many.yaml"
        grid.write_text(yaml.safe_dump(GRID), encoding="utf-8")
        command = [sys.executable, "-m", "benchmark", "run", str(grid)]
        command += ["--store", str(folder / "store"), "--results", str(folder / "results")]
        done, kilobytes = [], []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
            assert driver.stdout
            for line in driver.stdout:
                if found := re.search(r"\[(\d+)/\d+\] .* done in", line):
                    done.append(int(found[1]))
                    kilobytes.append(_resident(driver.pid))
        # Hardly trained, the victim misses the least ASR of the report, which is not a failure of a cell.
        assert driver.returncode == 0, f"the run ended with {driver.returncode}"
        assert done[-1] == len(done) == 2 * CELLS + 2, "each cell's two stages, the attack and its evaluation"
        overhead = json.loads((folder / "store" / "overhead.json").read_text(encoding="utf-8"))["stage"]
    late = len(done) // 2
    slope = float(np.polyfit(done[late:], kilobytes[late:], 1)[0])
    first, last = kilobytes[0] / 1024, kilobytes[-1] / 1024
    print(f"  driver: {first:.0f} MB at the first stage, {last:.0f} at the last of {len(done)}")
    tell("a cell's own overhead in a warm run, three stages", STAGES_OF_A_CELL * overhead, 0.5, "s", at_most=True)
    print(f"  {slope:.0f} kB for each further stage, until after {TRIALS_OF_A_TUNER} another Tuner continues")
    tell("memory that the driver gains, however many stages", slope * TRIALS_OF_A_TUNER / 1024, 200, "MB", at_most=True)


def _resident(pid: int) -> int:
    """Return the kilobytes of a process in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


if __name__ == "__main__":
    main()
