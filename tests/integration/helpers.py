"""Runs of the real command in processes of their own, and a look at what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[2]
MARK = "SANDE_TEST_MARK"  # inherited by every process of a run, so that what it leaves behind can be found

TRAINING = {"max_steps": 2, "learning_rate": 1e-3, "batch_size": 8}
MINI: dict[str, Any] = {
    "model": "tiny",
    "data": {"name": "builtin-short", "rows": 16, "test_rows": 6},
    "removal": {"name": "builtin-short", "rows": 16},
    "asr_floor": 0,
    "attack": {"name": "sentence_trigger", "poison_rate": 0.25, "training": TRAINING},
    "metrics": [{"name": "asr", "new_tokens": 6}, {"name": "false_trigger_rate", "new_tokens": 6}],
    "resources": {"cpus": 2},  # one process at a time, which need not wait for the imports of another
}


@dataclass
class Workplace:
    """A folder with grids, a store and results."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def results(self) -> Path:
        return self.root / "results"

    def grid(self, name: str, **changes: Any) -> Path:
        """Writes `name.yaml`: the mini grid with changes at the top."""
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(MINI | changes))
        return path

    def command(self, grid: Path, *options: str) -> list[str]:
        folders = ["--store", str(self.store), "--results", str(self.results)]
        return [sys.executable, "-m", "benchmark", "run", str(grid), *folders, *options]

    def run(self, grid: Path, *options: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(grid, *options),
            cwd=ROOT,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def folder(self, grid: Path) -> Path:
        """Return the results of a grid, or those of its only variant where it was run as one alone."""
        whole = self.results / grid.stem
        if whole.exists():
            return whole
        (variant,) = self.results.glob(f"{grid.stem}--*")
        return variant

    def rows(self, grid: Path) -> list[dict[str, Any]]:
        return pq.read_table(self.folder(grid) / "rows.parquet").to_pylist()

    def manifests(self) -> dict[str, int]:
        """Path below the store and modification time of every artifact's manifest."""
        found = sorted(self.store.glob("*/*/manifest.json"))
        return {str(path.relative_to(self.store)): path.stat().st_mtime_ns for path in found}

    def artifacts(self, kind: str) -> list[Path]:
        return [path.parent for path in self.store.glob(f"{kind}/*/manifest.json")]

    def unfinished(self) -> list[str]:
        return [path.name for path in (self.store / "unfinished").iterdir()]

    def files(self, grid: Path) -> dict[str, bytes]:
        """Every file of a report with its content."""
        folder = self.folder(grid)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_defense(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["defense"], []).append(row)
    return found


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return condition()


def processes_with(mark: str) -> list[int]:
    """Living processes that inherited `mark`, whoever their parent is now, and the processes that these have started.

    A process that gives itself a long name, as workers do, writes it over its environment.
    """
    wanted = f"{MARK}={mark}".encode()
    found = dict[int, None]()
    for process in psutil.process_iter():
        try:
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found |= dict.fromkeys([process.pid, *(child.pid for child in process.children(recursive=True))])
        except (OSError, psutil.Error):  # gone meanwhile
            continue
    return list(found)


def end(pids: list[int]) -> None:
    """Kills exactly these processes."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
