"""What a fault test is made of: faults armed in child processes, runs, a Ray cluster, and what must hold after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmark.plan import maintenance
from benchmark.store.local import LocalStore
from tests.faults import processes
from tests.integration.helpers import ROOT, TRAINING, Workplace, end, wait_until

HOOK = Path(__file__).parent / "hook"
SOON = 240  # seconds until something happens that must, on a machine that does other things too
GONE = 120  # seconds; a Ray worker that was just starting gives up only after its time-out for reaching the cluster
FOLDER = "SANDE_FAULTS"
NODE = "SANDE_FAULTS_NODE"  # in the environment of all processes of a node of the cluster

TRAIN, DECODE = "sande.training.fit:ResponseLoss.forward", "sande.inference.generation:greedy"
WRITE, PUT = "benchmark.io.files:atomically", "benchmark.store.local:LocalStore._move_in"
STEPS = TRAINING | {"max_steps": 4}
DEFENSES: tuple[Any, ...] = (
    "none",
    {"name": "sft", "training": STEPS},
    {"name": "sande_p", "simulate": STEPS, "eliminate": STEPS},
)
GRID: dict[str, Any] = {
    "attack": {"name": "sentence_trigger", "poison_rate": 0.25, "training": STEPS},
    # The second one's numbers have many digits: they differ wherever the weights do.
    "metrics": [{"name": "asr", "new_tokens": 2}, {"name": "response_probability", "prompts": 4}],
    "sweep": {"defense": list(DEFENSES)},
}
# Of a row: what is not the same in two runs.
VARY = {"seconds", "attack_seconds", "metric_seconds", "decoding_seconds", "peak_memory_bytes", "started_at"}
VARY |= {"code_version", "attack_code_version", "defense_code_version"}  # the code may be edited meanwhile


class Faults:
    """The folder by which `hook/sitecustomize.py`, in the processes of the runs, is told what to do, and tells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("armed", "fired"):
            (root / name).mkdir(parents=True)
        for name in ("processes", "stages"):
            (root / name).touch()

    @property
    def environment(self) -> dict[str, str]:
        """Of processes in which faults may happen."""
        path = os.pathsep.join([str(HOOK), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Who has lost the head gives up after ten seconds, not after a minute.
        ray = {"RAY_AUTH_MODE": "token", "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        # A processor that is busy may time bfloat16 as faster once, and as slower the next time.
        return {"PYTHONPATH": path, FOLDER: str(self.root), "SANDE_COMPUTE_TYPE": "fp32", **ray}

    def arm(self, point: str, action: str = "hold", stage: str = "", path: str = "", call: int = 1) -> str:
        """Let a fault happen once, see the hook; gives its name."""
        name = uuid.uuid4().hex
        fault = {"point": point, "action": action, "stage": stage, "path": path, "call": call}
        part = self.root / f"{name}.part"
        part.write_text(json.dumps(fault))
        part.rename(self.root / "armed" / f"{name}.json")
        return name

    def fired(self, name: str) -> int | None:
        """The process in which it happened, None if it did not yet."""
        marks = list((self.root / "fired").glob(f"{name}.*"))
        return int(marks[0].suffix[1:]) if marks else None

    def release(self, name: str = "") -> None:
        """Let go on what a fault holds; without its name, everything that is held, and disarm what did not happen."""
        for path in (*(self.root / "fired").glob(f"{name}*"), *(self.root / "armed").glob(f"{name}*")):
            path.unlink(missing_ok=True)

    def processes(self) -> dict[int, str]:
        """Living processes of runs and of the cluster, with the node of each, '' for those of runs without a cluster.

        Python's write themselves down; Ray's own are known by their environment, which Ray's workers overwrite.
        """
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):  # gone meanwhile
                names = dict(
                    line.split("=", 1)
                    for line in (folder / "environ").read_text(errors="replace").split("\0")
                    if "=" in line
                )
                if names.get(FOLDER) == str(self.root) and processes.began(int(folder.name)):
                    found[int(folder.name)] = names.get(NODE, "")
        for line in (self.root / "processes").read_text().splitlines():
            pid, began, *node = line.split()
            if began == processes.began(int(pid)):
                found[int(pid)] = "".join(node)
        return found

    def begun(self, location: str) -> Counter[str]:
        """How often each stage was begun in a store, by key."""
        lines = (line.split() for line in (self.root / "stages").read_text().splitlines())
        return Counter(key for _, root, _, key in lines if root == location)


class Machines:
    """A Ray cluster: a head without CPUs, where drivers join, and nodes of one CPU on which stages run."""

    def __init__(self, faults: Faults, nodes: int = 2) -> None:
        self._faults = faults
        self._nodes: set[str] = set()
        self._starter = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nodes", NODE],
            cwd=ROOT,
            env=os.environ | faults.environment | {NODE: "starter"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.head = self.add(cpus=0)
        for _ in range(nodes):
            self.add()

    def add(self, cpus: int = 1) -> str:
        """One more node; gives its name, which all of its processes know."""
        name = uuid.uuid4().hex[:8]
        assert self._starter.stdin
        assert self._starter.stdout
        print(name, cpus, file=self._starter.stdin, flush=True)
        address = self._starter.stdout.readline().strip()
        assert address, "the node did not start"
        self._nodes.add(name)
        self.options = "--address", address
        return name

    def node_of(self, pid: int) -> str:
        """The node whose process this is."""
        return self._faults.processes()[pid]

    def kill(self, name: str) -> None:
        """All processes of a node at once, as if it lost its power."""
        self._nodes.discard(name)
        assert wait_until(lambda: not self._end(name), SOON)

    def _end(self, name: str) -> list[int]:
        found = [pid for pid, node in self._faults.processes().items() if node == name]
        end(found)
        return found

    def close(self) -> None:
        """End all of it."""
        for name in [*self._nodes]:
            self.kill(name)
        self._starter.communicate()


@dataclass
class Line:
    """One of the table.

    Attributes:
        fault: what was done.
        injected: how often.
        recovered: by the run itself, by the one after it, or not.
        repeated: stages that began once more.
        seconds: that it took, with all runs.
        code: commit of the program.
    """

    fault: str
    injected: int = 0
    recovered: str = "NO"
    repeated: int = 0
    seconds: float = 0.0
    code: str = ""


@dataclass
class Case(Workplace):
    """A grid on which a fault happens, in a folder of its own."""

    root: Path
    faults: Faults
    line: Line
    log: Path = field(init=False)
    location: str = field(init=False)  # of the store, as runs know it
    options: tuple[str, ...] = ()  # of every run
    changes: dict[str, Any] = field(default_factory=dict)  # of the grid
    given: int = 0  # stages that were done before
    inside: list[str] = field(default_factory=list)  # before a command, where the store is on a disk of its own
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root.mkdir()
        self.log = self.root / "log"
        self.path = self.grid("faults", **GRID | self.changes)
        self.location = str(self.store)

    def begin_with(self, undisturbed: Case) -> None:
        """Start from the store of a run that is over."""
        shutil.copytree(undisturbed.store, self.store)
        self.given = undisturbed.faults.begun(undisturbed.location).total()

    def artifact(self, kind: str, defense: str) -> Path:
        """Folder of one, by its defense (none for the victim), of an evaluation by its first metric too."""
        for path in self.artifacts(kind):
            manifest = json.loads((path / "manifest.json").read_text())
            method = manifest["settings"]["defense"]["name"] if kind != "attack" else "none"
            if method == defense and (kind != "evaluate" or manifest["measurements"][0]["name"] == "asr"):
                return path
        raise AssertionError(f"no {kind} {defense} in {self.store}")

    @contextmanager
    def small_disk(self, size: str) -> Iterator[None]:
        """Within it, the store is on a disk of its own, which only the runs see."""
        self.store.mkdir()
        holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={size} none "$0" && echo && exec cat', self.store],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout
        assert holder.stdout.readline(), "no disk could be mounted"
        self.inside = ["nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials"]
        try:
            yield
        finally:
            self.inside = []
            holder.communicate()

    def copy_disk(self) -> None:
        """Put what is on that disk in its place."""
        copy = self.root / "store.tar"
        subprocess.run([*self.inside, "tar", "-cf", copy, "-C", self.store, "."], check=True)
        subprocess.run(["tar", "-xf", copy, "-C", self.store], check=True)

    def resize(self, size: str) -> None:
        """Give that disk another size."""
        subprocess.run([*self.inside, "mount", "-o", f"remount,size={size}", self.store], check=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Begin a run."""
        with self.log.open("ab") as log:
            self.drivers.append(
                subprocess.Popen(
                    [*self.inside, *self.command(self.path, *self.options)],
                    cwd=ROOT,
                    env=os.environ | self.faults.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return self.drivers[-1]

    def reach(self, fault: str) -> int:
        """Wait until an armed fault happened, in the run that is at work or, if that ends before, in another one."""
        for _ in range(2):
            driver = self.drivers[-1] if self.drivers and self.drivers[-1].poll() is None else self.start()
            over = wait_until(lambda d=driver: self.faults.fired(fault) is not None or d.poll() is not None, SOON)
            assert over, self.said
            if pid := self.faults.fired(fault):
                self.line.injected += 1
                return pid
        raise AssertionError(f"the fault did not happen:\n{self.said}")

    def kill(self, *pids: int) -> None:
        """SIGKILL."""
        end(list(pids))
        assert wait_until(lambda: not any(map(processes.living, pids)), SOON)
        for driver in self.drivers:
            driver.poll()  # else what is left of it would look alive to others

    def of_run(self) -> dict[int, str]:
        """Living processes that the last driver started, by what each is, and the driver itself."""
        driver = self.drivers[-1].pid
        found = {driver: "the driver"} if self.drivers[-1].poll() is None else {}
        return found | {pid: processes.what(processes.title(pid)) for pid in processes.descendants(driver)}

    def ended(self, driver: subprocess.Popen[bytes] | None = None) -> int:
        """Wait for the end of a run, of the last one if none is given; gives its exit code."""
        return (driver or self.drivers[-1]).wait(SOON)

    @property
    def said(self) -> str:
        """What all runs have said."""
        return self.log.read_text(errors="replace")

    def left(self) -> set[str]:
        """Files that are none of a result: half-written ones, work in progress, checkpoints, leases."""
        patterns = "*.part", "unfinished/*", "leases/*", "checkpoints/*/*"
        return {str(path.relative_to(self.root)) for pattern in patterns for path in self.root.rglob(pattern)}

    def vanish(self) -> None:
        """Wait until no process of a run is left, not even one that is held; then disarm what did not happen.

        Ray's own workers, which leave a minute after a driver that was killed, are waited for after the next run.
        """
        assert wait_until(lambda: not any(processes.working(pid) for pid in self.processes()), GONE), self.processes()
        self.faults.release()

    def recover(self, undisturbed: Case, fetch: Callable[[], None] = lambda: None) -> None:
        """One more run, after which everything must be as in a run where nothing happened.

        Args:
            undisturbed: that run.
            fetch: brings store and results here after it, if they are elsewhere.
        """
        by_itself = bool(self.drivers) and all(driver.poll() == 0 for driver in self.drivers)
        self.vanish()
        last = self.start()
        assert self.ended(last) == 0, self.said
        fetch()
        self.compare(undisturbed)
        self.line.recovered = "by the run itself" if by_itself else "by the next run"

    def compare(self, undisturbed: Case) -> None:
        """Everything is as in a run where nothing happened."""
        assert self.shown() == undisturbed.shown()
        assert self.made() == undisturbed.made()
        keys = Counter((row["cell"], row["metric"]) for row in self.rows(self.path))
        assert set(keys.values()) == {1}, keys
        assert list(maintenance.verify(LocalStore(self.store))) == []
        assert self.left() == set()
        assert wait_until(lambda: not self.processes(), GONE), self.processes()
        stages = len(undisturbed.faults.begun(undisturbed.location))
        self.line.repeated = self.faults.begun(self.location).total() + self.given - stages

    def shown(self) -> list[Any]:
        """Rows and outcomes, without times and memory."""
        folder = self.results / self.path.stem
        rows = [{k: v for k, v in row.items() if k not in VARY} for row in self.rows(self.path)]
        return [*rows, *pq.read_table(folder / "outcomes.parquet").to_pylist(), sorted(self.files(self.path))]

    def made(self) -> dict[str, Any]:
        """Of each artifact its files with their checksums; outcomes are compared as what is shown."""
        found = {}
        for path in self.store.glob("*/*/manifest.json"):
            if path.parts[-3] != "damaged":
                files = json.loads(path.read_text())["checksums"]["files"]
                found[str(path.parent.relative_to(self.store))] = {name: of["sha256"] for name, of in files.items()}
        return found

    def processes(self) -> list[int]:
        """Of this case's runs, those of the cluster's own aside."""
        return [pid for pid, node in self.faults.processes().items() if not node or processes.has_a_job(pid)]

    def close(self) -> None:
        """End what is left of it, and disarm its faults."""
        self.faults.release()
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
