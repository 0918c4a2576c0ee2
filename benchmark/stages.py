"""The stages of a cell: attack, defend, evaluate. Each reads from the store, computes, and writes back.

A stage's artifact is a folder: a model (attack, defend) or the outcomes of one metric (evaluate), and a manifest with
its costs. Nothing here depends on Ray.
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sande
from benchmark.cell import NO_DEFENSE, Cell, Kind, Method
from benchmark.store_protocol import Store
from sande import compute, crowd, engines, registry, threat, types
from sande.sharding import WHOLE, Sharding
from sande.threat import Threat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

CODE_VERSION = "SANDE_CODE_VERSION"  # in the environment of a job, which runs outside of a checkout
DIRTY = "-dirty"  # suffix of the commit where files differ from it
_JSON = ("kind", "key", "settings", "needs", "metric_keys")  # fields of a stage in its text
LIBRARIES = ("torch", "transformers", "trl", "peft", "ray", "lm_eval", "datasets", "accelerate")


@dataclass(frozen=True)
class Stage:
    """One unit of work, which any process can do that sees the store.

    Attributes:
        kind: attack, defend or evaluate.
        key: of its artifact; an evaluation has one artifact a metric, under `metric_keys`.
        settings: settings of a cell that needs it.
        needs: keys of the stages whose artifacts it reads.
        metric_keys: for evaluate, the key of the outcome of each of the cell's metrics.
        parsed: the cell of the settings, where it is known.
    """

    kind: Kind
    key: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    metric_keys: tuple[str, ...] = ()
    parsed: Cell | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, cell: Cell, kind: Kind, key: str, needs: tuple[str, ...] = (), metric_keys: tuple[str, ...] = ()
    ) -> Stage:
        """Return a stage of a known cell, which need not be parsed again from its settings."""
        return cls(kind, key, cell.settings(), needs, metric_keys, cell)

    def to_json(self) -> str:
        """Return all fields as one text; Tune keeps several copies of a trial's configuration, but none of a text."""
        return json.dumps({name: getattr(self, name) for name in _JSON})

    @classmethod
    def from_json(cls, text: str) -> Stage:
        """Return the stage that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {name: tuple(fields[name]) for name in ("needs", "metric_keys")})

    @functools.cached_property
    def cell(self) -> Cell:
        """Return the cell of the settings."""
        return self.parsed or Cell.parse(self.settings)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Return the keys of the artifacts that it makes."""
        return self.metric_keys or (self.key,)

    @property
    def label(self) -> str:
        """Return a name for messages: kind, model, method, and the start of the key."""
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
    """Run an attack or a defense; the process of rank 0 stores the model, the others only take part.

    It resumes from the checkpoints of a process that was killed in the same stage. They are removed when the model is
    stored.

    Args:
        stage: stage to run.
        store: holds the victim, and receives the result.
        prepare: hook for the Trainer, see `sande.types.Run`.
        say: receives progress.
        rank: of this process among the stage's workers.
        interval: seconds from one checkpoint to the next.
        sharding: sharding of its trainings.
        watch: receives the status of its trainings, see `sande.types.Run`.
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
            if sharding != WHOLE:  # its peak is not that of a stage without sharding, see `benchmark.memory`
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

    In a group of workers the worker of rank 0 chooses the metrics to compute and stores them; the others only take
    part.

    Args:
        stage: stage to run.
        store: holds the model, and receives the outcomes.
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
        # The memory that vLLM's process took at its start, which the allocator here does not see.
        made["peak_memory_bytes"] += int(engines.MEMORY * cost.get("device_memory_bytes", 0))
    return made


def _summary(measurement: types.Measurement) -> dict[str, Any]:
    """Return sum and number of the outcomes; of numbers also the standard deviation, which a share does not need."""
    outcomes = measurement.outcomes
    summary = {"name": measurement.name, "successes": sum(outcomes), "count": len(outcomes)}
    if not all(isinstance(outcome, bool) for outcome in outcomes):
        summary["deviation"] = statistics.stdev(outcomes) if len(outcomes) > 1 else 0.0
    return summary | {"published": measurement.published}


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Measure seconds and peak memory of the block: the process's on a CPU, the allocator's and the total on a GPU."""
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
    """Return the manifest of an artifact: its settings, its costs, and the versions that computed it."""
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
    """Return those manifests of a stage that the store has: one, or one for each of its metrics."""
    keys = stage.metric_keys or (stage.key,)
    return [store.manifest(stage.kind, key) for key in keys if store.has(stage.kind, key)]


def device() -> str:
    """Return the GPU's name, or the processor's with the threads in use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{model} ({torch.get_num_threads()} threads)"


def code_version() -> str:
    """Return the version of the package, with the commit in a checkout; in a job that of the submitting process."""
    if CODE_VERSION in os.environ:
        return os.environ[CODE_VERSION]
    commit, changes = _git("describe", "--always"), changed_files()
    if commit is None or changes is None:
        return sande.__version__
    return f"{sande.__version__}+{commit}{DIRTY if changes else ''}"


def changed_files() -> list[str] | None:
    """Return tracked files of the checkout that differ from its commit, except results; None outside a checkout."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return None if status is None else [line.split(maxsplit=1)[-1] for line in status.splitlines()]


def _git(*arguments: str) -> str | None:
    """Return git's output about the checkout of this program; None where there is no git or no checkout."""
    here = Path(sande.__file__).parent.parent
    try:
        git = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


def tokens(facts: Mapping[str, Any]) -> int:
    """Return the tokens of all trainings among a stage's facts."""
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
    # Linux: restart VmHWM here, so that a reused worker does not report an earlier stage's peak.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_rss() -> int:
    for line in _lines(f"/proc/{os.getpid()}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
