"""The three stages of a cell, attack, defend, evaluate: what each reads from the store, does, and writes back.

A stage's artifact is a folder: a model (attack, defend) or the outcomes of one metric (evaluate), and a manifest with
what it cost. Nothing here knows Ray.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sande
from benchmark.cell import NO_DEFENSE, Cell, Kind, Method
from benchmark.store import Store
from sande import compute, crowd, engines, registry, threat, types
from sande.sharding import WHOLE, Sharding
from sande.threat import Threat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

CODE_VERSION = "SANDE_CODE_VERSION"  # in the environment of a job, which runs in no checkout and could not tell
DIRTY = "-dirty"  # behind the commit, where files differ from it
LIBRARIES = ("torch", "transformers", "trl", "peft", "ray", "lm_eval", "datasets", "accelerate")


@dataclass(frozen=True)
class Stage:
    """One piece of work: enough to do it in any process that sees the store.

    Attributes:
        kind: attack, defend or evaluate.
        key: what its artifact is called; an evaluation has one artifact a metric, called as `metric_keys` says.
        settings: of a cell that needs it.
        needs: keys of the stages whose artifacts it reads.
        metric_keys: for evaluate, the key of the outcome of each of the cell's metrics.
    """

    kind: Kind
    key: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    metric_keys: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cell: Cell, kind: Kind, key: str, needs: tuple[str, ...] = (), metric_keys: tuple[str, ...] = ()
    ) -> Stage:
        """A stage of a cell that is at hand, which need not be parsed again from its settings."""
        stage = cls(kind, key, cell.settings(), needs, metric_keys)
        stage.__dict__["cell"] = cell
        return stage

    def to_json(self) -> str:
        """All of it as one text, of which Tune, which keeps several copies of what a trial is given, makes none."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Stage:
        """The stage that `to_json` wrote down."""
        fields = json.loads(text)
        return cls(**fields | {name: tuple(fields[name]) for name in ("needs", "metric_keys")})

    @functools.cached_property
    def cell(self) -> Cell:
        """The cell of the settings."""
        return Cell.parse(self.settings)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Keys of what it makes."""
        return self.metric_keys or (self.key,)

    @property
    def label(self) -> str:
        """For people: what, on which model, and the start of the key."""
        method = self.settings["attack" if self.kind == "attack" else "defense"]["name"]
        return f"{self.kind} {self.settings['model'].rstrip('/').split('/')[-1]} {method} {self.key[:8]}"


def train(
    stage: Stage,
    store: Store,
    prepare: Callable[[Trainer], Trainer],
    say: Callable[[str], None],
    rank: int,
    interval: float,
    sharding: Sharding = WHOLE,
    watch: Callable[[types.TrainingStatus], None] | None = None,
) -> None:
    """Do an attack or a defense; the process of rank 0 stores the model, the others only take part.

    It goes on from the checkpoints of a process that was killed at the same stage. They go when the model is stored.

    Args:
        stage: what to do.
        store: where the victim is read and the result is put.
        prepare: hook for the Trainer, see `sande.types.Run`.
        say: receives progress.
        rank: of this process among the stage's workers.
        interval: seconds from one checkpoint to the next.
        sharding: of its trainings.
        watch: receives how far they are, see `sande.types.Run`.
    """
    from sande import models
    from sande.checkpoints import Checkpoints

    cell = stage.cell
    kept = store.root / "checkpoints" / stage.kind / stage.key

    def build(folder: Path) -> dict[str, Any]:
        scratch = store.scratch("trainer")
        checkpoints = Checkpoints(kept, interval)
        run = types.Run(
            seed=cell.seed,
            scratch=str(scratch),
            prepare=prepare,
            say=say,
            watch=watch,
            checkpoints=checkpoints,
            sharding=sharding,
        )
        try:
            with measured() as cost:
                lm = _attack(cell, store, run) if stage.kind == "attack" else _defend(cell, store, run)
            cost["seconds"] = round(cost["seconds"] + checkpoints.earlier, 3)
            if sharding != WHOLE:  # a peak that says nothing of stages that are whole, see `benchmark.memory`
                cost.pop("device_memory_bytes", None)
            if rank == 0:
                models.save(lm, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        made = manifest(stage, cost, tokens(run.facts), compute_type(run.facts), {"facts": run.facts})
        if sharding.deepspeed:
            made["versions"]["deepspeed"] = version("deepspeed")
        return made

    if rank == 0:
        store.put(stage.kind, stage.key, build)
        shutil.rmtree(kept, ignore_errors=True)
    else:
        build(store.root)


def _attack(cell: Cell, store: Store, run: types.Run) -> types.LanguageModel:
    from sande import models

    return _threat(cell).train(models.load(cell.model, store.models), run)


def _defend(cell: Cell, store: Store, run: types.Run) -> types.LanguageModel:
    import torch

    from sande import models

    victim = models.load_folder(store.read("attack", cell.attack_key), torch.float32)
    data = reveal(cell, victim.tokenizer, store)
    return threat.defend(victim, cell.defense.name, data, cell.defense.config, run)


def _threat(cell: Cell) -> Threat:
    return Threat(cell.attack.name, cell.attack.config, cell.data, cell.seed, cell.model)


def reveal(cell: Cell, tokenizer: PreTrainedTokenizerBase, store: Store) -> types.Knowledge:
    """Return what the cell's defense may know, see `sande.threat.reveal`."""
    from sande import models

    def load(name: str) -> PreTrainedModel:
        return models.load(name, store.models).model

    return threat.reveal(_threat(cell), cell.defense.name, cell.defense.config, cell.removal, tokenizer, load)


def evaluate(
    stage: Stage, store: Store, say: Callable[[str], None], engine: str, workers: crowd.WorkerGroup | None = None
) -> None:
    """Compute the stage's metrics on its model, and store the outcome of each under its own key.

    In a group of workers the one of rank 0 decides which metrics are computed, and stores the outcomes.

    Args:
        stage: what to do.
        store: where the model is read and the outcomes are put.
        say: receives progress.
        engine: one of `sande.engines`.
        workers: that compute the stage together, each of which calls this function; None: this process alone.
    """
    from sande import models

    cell = stage.cell
    kind = "attack" if cell.defense.name == NO_DEFENSE else "defend"
    folder = store.read(kind, cell.defense_key)
    lm = dataclasses.replace(models.load_folder(folder, compute.dtype()), workers=workers)
    data = test_data(cell, lm.tokenizer)
    none: int | None = None
    with engines.served(lm, folder, cell.seed) if engine == engines.VLLM else nullcontext(lm) as computing:

        def build(number: int, folder: Path) -> dict[str, Any]:
            crowd.broadcast(workers, number)  # not before `put`, which may find the outcome and never ask for it
            return _measure(stage, computing, data, cell.metrics[number], cell.seed, folder)

        if workers is None or workers.rank == 0:
            for number, key in enumerate(stage.metric_keys):
                if not store.has("evaluate", key):
                    say(f"measuring {cell.metrics[number].name}")
                    store.put("evaluate", key, functools.partial(build, number))
            crowd.broadcast(workers, none)
        else:
            while (wanted := crowd.broadcast(workers, none)) is not None:
                metric = cell.metrics[wanted]
                registry.entry("metrics", metric.name).measure(computing, data, metric.config, cell.seed)


def test_data(cell: Cell, tokenizer: PreTrainedTokenizerBase) -> types.TestData:
    """Return what the cell's metrics may use. It follows from what is in the key of an evaluation."""
    return _threat(cell).test_data(tokenizer)


def _measure(
    stage: Stage, lm: types.LanguageModel, data: types.TestData, metric: Method, seed: int, folder: Path
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with measured() as cost:
        measurements = registry.entry("metrics", metric.name).measure(lm, data, metric.config, seed)
    outcomes = [
        {
            "metric": m.name,
            "index": index,
            "outcome": float(outcome),
            "record": json.dumps(m.records[index]) if m.records else None,
        }
        for m in measurements
        for index, outcome in enumerate(m.outcomes)
    ]
    pq.write_table(pa.Table.from_pylist(outcomes), folder / "outcomes.parquet")
    made = manifest(stage, cost, 0, compute.compute_type(), {"measurements": [_summary(m) for m in measurements]})
    if isinstance(lm, engines.Served):
        made["versions"]["vllm"] = engines.version()
        # What its process took at its start, of which the allocator here knows nothing.
        made["peak_memory_bytes"] += int(engines.MEMORY * cost.get("device_memory_bytes", 0))
    return made


def _summary(measurement: types.Measurement) -> dict[str, Any]:
    """Sum and number of the outcomes; of numbers also their standard deviation, of which a share has no need."""
    outcomes = measurement.outcomes
    summary = {"name": measurement.name, "successes": sum(outcomes), "count": len(outcomes)}
    if not all(isinstance(outcome, bool) for outcome in outcomes):
        summary["deviation"] = statistics.stdev(outcomes) if len(outcomes) > 1 else 0.0
    return summary | {"published": measurement.published}


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of the block: the process's on a CPU; on a GPU the allocator's, and what the GPU has."""
    import torch

    cuda = torch.cuda.is_available()
    cost: dict[str, Any] = {"started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak_rss()
    begin = time.perf_counter()
    yield cost
    cost["seconds"] = round(time.perf_counter() - begin, 3)
    cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
    if cuda:
        cost["device_memory_bytes"] = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def manifest(
    stage: Stage, cost: dict[str, Any], tokens: int, compute_type: str, more: dict[str, Any]
) -> dict[str, Any]:
    """What is kept beside an artifact: where it came from, what it cost, with which versions."""
    return {
        "kind": stage.kind,
        "settings": dict(stage.settings),
        **cost,
        "tokens": tokens,
        "device": device(),
        "instruction_set": compute.instruction_set(),
        "compute_type": compute_type,
        "code_version": code_version(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
            **registry.plugin_versions(),
        },
        **more,
    }


def manifests_of(stage: Stage, store: Store) -> list[dict[str, Any]]:
    """What a stage wrote down, as far as it can be seen here: a manifest, or one for each of its metrics."""
    keys = stage.metric_keys or (stage.key,)
    return [store.manifest(stage.kind, key) for key in keys if store.has(stage.kind, key)]


def device() -> str:
    """The GPU's name, or the processor's with the threads in use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{model} ({torch.get_num_threads()} threads)"


def code_version() -> str:
    """Version of the package, with the commit where it runs from a checkout; in a job that of who submitted it."""
    if CODE_VERSION in os.environ:
        return os.environ[CODE_VERSION]
    commit, changes = _git("describe", "--always"), changed_files()
    if commit is None or changes is None:
        return sande.__version__
    return f"{sande.__version__}+{commit}{DIRTY if changes else ''}"


def changed_files() -> list[str] | None:
    """Return tracked files of the checkout that differ from its commit, results aside; None outside a checkout."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return None if status is None else [line.split(maxsplit=1)[-1] for line in status.splitlines()]


def _git(*arguments: str) -> str | None:
    """Return what git says of the checkout that this program runs from; None where there is no git or no checkout."""
    here = Path(sande.__file__).parent.parent
    try:
        git = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


def tokens(facts: Mapping[str, Any]) -> int:
    """Tokens of all trainings among a stage's facts."""
    return sum(fact["tokens"] for fact in facts.values() if isinstance(fact, dict) and "tokens" in fact)


def compute_type(facts: Mapping[str, Any]) -> str:
    """Return the type that a stage's trainings computed in: both, where they differ; fp32 for a stage without any."""
    trainings = (fact for fact in facts.values() if isinstance(fact, dict) and "steps" in fact)
    return "+".join(sorted({fact["compute_type"] for fact in trainings})) or "fp32"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _reset_peak_rss() -> None:
    # Linux: makes VmHWM start again from here, so that a reused worker does not report an earlier stage's peak.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_rss() -> int:
    for line in _lines(f"/proc/{os.getpid()}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
