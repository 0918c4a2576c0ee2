"""The stages of a cell: attack, defend, evaluate. Each reads from the store, computes, and writes back.

A stage's artifact is a folder: a model (attack, defend) or the outcomes of one metric (evaluate), and a manifest with
its costs. Nothing here depends on Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.execution.provenance import compute_type, manifest, measured, tokens
from benchmark.grid.cell import NO_DEFENSE, Cell, Method
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store
from sande import compute, registry, threat, types
from sande.inference import vllm
from sande.inference.workers import WorkerGroup, broadcast
from sande.threat import Threat
from sande.training.sharding import WHOLE, Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def train(
    stage: Stage,
    store: Store,
    prepare: Callable[[Trainer], Trainer],
    say: Callable[[str], None],
    rank: int,
    interval: float,
    sharding: Sharding = WHOLE,
    watch: Callable[[types.TrainingStatus], None] | None = None,
    workers: int = 1,
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
        workers: processes that run the stage together.
    """
    from sande.models import loading
    from sande.training.checkpoints import Checkpoints

    cell = stage.cell
    kept = store.root / "checkpoints" / stage.kind / stage.key

    def build(folder: Path) -> dict[str, Any]:
        scratch = store.scratch("trainer")
        checkpoints = Checkpoints(kept, interval)
        run = types.Run(
            seed=cell.attack_seed if stage.kind == "attack" else cell.defense_seed,
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
            if sharding != WHOLE:  # its peak is not that of a stage without sharding, see `benchmark.plan.memory`
                cost.pop("device_memory_bytes", None)
            if rank == 0:
                loading.save(lm, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        made = manifest(stage, cost, tokens(run.facts), compute_type(run.facts), workers, {"facts": run.facts})
        if sharding.deepspeed:
            made["versions"]["deepspeed"] = version("deepspeed")
        return made

    if rank == 0:
        store.put(stage.kind, stage.key, build)
        shutil.rmtree(kept, ignore_errors=True)
    else:
        build(store.root)


def _attack(cell: Cell, store: Store, run: types.Run) -> types.LanguageModel:
    from sande.models import loading

    return _threat(cell).train(loading.load(cell.model, store.models), run)


def _defend(cell: Cell, store: Store, run: types.Run) -> types.LanguageModel:
    import torch

    from sande.models import loading

    victim = loading.load_folder(store.read("attack", cell.attack_key), torch.float32)
    data = reveal(cell, victim.tokenizer, store)
    return threat.defend(victim, cell.defense.name, data, cell.defense.config, run)


def _threat(cell: Cell) -> Threat:
    return Threat(cell.attack.name, cell.attack.config, cell.data, cell.attack_seed, cell.model)


def reveal(cell: Cell, tokenizer: PreTrainedTokenizerBase, store: Store) -> types.Knowledge:
    """Return what the cell's defense may know, see `sande.threat.reveal`."""
    from sande.models import loading

    def load(name: str) -> PreTrainedModel:
        return loading.load(name, store.models).model

    return threat.reveal(_threat(cell), cell.defense.name, cell.defense.config, cell.removal, tokenizer, load)


def evaluate(
    stage: Stage, store: Store, say: Callable[[str], None], engine: str, workers: WorkerGroup | None = None
) -> None:
    """Compute the stage's metrics on its model, and store the outcome of each under its own key.

    In a group of workers the worker of rank 0 chooses the metrics to compute and stores them; the others only take
    part.

    Args:
        stage: stage to run.
        store: holds the model, and receives the outcomes.
        say: receives progress.
        engine: one of `sande.inference.vllm`.
        workers: that compute the stage together, each of which calls this function; None: this process alone.
    """
    from sande.models import loading

    cell = stage.cell
    kind = "attack" if cell.defense.name == NO_DEFENSE else "defend"
    folder = store.read(kind, cell.defense_key)
    lm = dataclasses.replace(loading.load_folder(folder, compute.dtype()), workers=workers)
    data = test_data(cell, lm.tokenizer)
    none: int | None = None
    size = workers.size if workers else 1
    with vllm.served(lm, folder, cell.attack_seed) if engine == vllm.VLLM else nullcontext(lm) as computing:

        def build(number: int, folder: Path) -> dict[str, Any]:
            broadcast(workers, number)  # not before `put`, which may find the outcome and never ask for it
            return _measure(stage, computing, data, cell.metrics[number], size, folder)

        if workers is None or workers.rank == 0:
            for number, key in enumerate(stage.metric_keys):
                if not store.has("evaluate", key):
                    say(f"measuring {cell.metrics[number].name}")
                    store.put("evaluate", key, functools.partial(build, number))
            broadcast(workers, none)
        else:
            while (wanted := broadcast(workers, none)) is not None:
                metric = cell.metrics[wanted]
                registry.entry("metrics", metric.name).measure(computing, data, metric.config, cell.attack_seed)


def test_data(cell: Cell, tokenizer: PreTrainedTokenizerBase) -> types.TestData:
    """Return what the cell's metrics may use. It follows from what is in the key of an evaluation."""
    return _threat(cell).test_data(tokenizer)


def _measure(
    stage: Stage, lm: types.LanguageModel, data: types.TestData, metric: Method, size: int, folder: Path
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with measured() as cost:
        measurements = registry.entry("metrics", metric.name).measure(lm, data, metric.config, stage.cell.attack_seed)
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
    summaries = [_summary(m) for m in measurements]
    made = manifest(stage, cost, 0, compute.compute_type(), size, {"measurements": summaries})
    if isinstance(lm, vllm.Served):
        made["versions"]["vllm"] = vllm.version()
        # The memory that vLLM's process took at its start, which the allocator here does not see.
        made["peak_memory_bytes"] += int(vllm.MEMORY * cost.get("device_memory_bytes", 0))
    return made


def _summary(measurement: types.Measurement) -> dict[str, Any]:
    """Return sum and number of the outcomes; of numbers also the standard deviation, which a share does not need."""
    outcomes = measurement.outcomes
    summary = {"name": measurement.name, "successes": sum(outcomes), "count": len(outcomes)}
    if not all(isinstance(outcome, bool) for outcome in outcomes):
        summary["deviation"] = statistics.stdev(outcomes) if len(outcomes) > 1 else 0.0
    return summary | {"published": measurement.published}
