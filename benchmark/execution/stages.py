"""The stages of a cell: attack, part, defend, evaluate. Each reads from the store, computes, and writes back.

A stage's artifact is a folder: a model (attack, defend), tensors (part) or the outcomes of one metric (evaluate), and a
manifest with its costs. Nothing here depends on Ray.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.execution.provenance import compute_type, manifest, measured, tokens
from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE, Cell, Method
from benchmark.grid.resources import TENSOR
from benchmark.plan.stage import Stage
from benchmark.records.schema import STORED_OUTCOMES
from benchmark.store.protocol import Store
from sande import clusters, compute, crossed, parts, registry, threat, types
from sande.errors import UnscorableError, UserError
from sande.inference import vllm
from sande.inference.counts import Decoded, counted
from sande.inference.workers import WorkerGroup, broadcast
from sande.metrics.asr import any_length
from sande.models.catalog import TINY
from sande.threat import Threat
from sande.training.sharding import WHOLE, Sharding

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

_PART = "part.safetensors"  # the file of a part
# What the manifest of a defense repeats from those of its parts, which may be gone when rows are made.
PART_COSTS = ("seconds", "tokens", "peak_memory_bytes", "device", "compute_type", "code_version")


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
    elastic: bool = False,
    agree: Callable[[bool], bool] = bool,
) -> None:
    """Run an attack, a defense or a part; the process of rank 0 stores the result, the others only take part.

    It resumes from the checkpoints of a process that was killed in the same stage. They are removed when the result is
    stored.

    Args:
        stage: stage to run.
        store: holds the victim and the parts, and receives the result.
        prepare: hook for the Trainer, see `sande.types.Run`.
        say: receives progress.
        rank: of this process among the stage's workers.
        interval: seconds from one checkpoint to the next.
        sharding: sharding of its trainings.
        watch: receives the status of its trainings, see `sande.types.Run`.
        workers: processes that run the stage together.
        elastic: whether their number may differ from that of an earlier process, whose checkpoints it then takes.
        agree: gives all of them what the process of rank 0 has, once each of them has called it.

    Raises:
        UserError: as `Stage.check`, and as the method.
    """
    from benchmark.execution.elastic import ElasticCheckpoints, worker_changes
    from sande.training.checkpoints import Checkpoints

    stage.check()
    cell = stage.cell
    kept = store.checkpoints(stage.kind, stage.key, say)
    if not (sharding.deepspeed and workers > 1):  # a snapshot has the shards of one machine
        kept.restore()

    def build(folder: Path) -> dict[str, Any]:
        scratch = store.scratch("trainer")
        written = kept.saved if not (sharding.deepspeed and workers > 1) else lambda: None
        checkpoints = (ElasticCheckpoints if elastic else Checkpoints)(kept.folder, interval, written, say)
        run = types.Run(
            seed=cell.attack_seed if stage.kind == "attack" else cell.defense_seed,
            scratch=str(scratch),
            prepare=prepare,
            say=say,
            watch=watch,
            checkpoints=checkpoints,
            sharding=sharding,
            parts=functools.partial(_part_of, cell, store) if stage.kind == "defend" and cell.defense.parts else None,
        )
        try:
            more = {"facts": run.facts, **_about_parts(stage, store)}
            with measured() as cost:
                save = _WORK[stage.kind](stage, store, run)
            cost["seconds"] = round(cost["seconds"] + checkpoints.earlier, 3)
            if sharding != WHOLE:  # its peak is not that of a stage without sharding, see `benchmark.plan.memory`
                cost.pop("device_memory_bytes", None)
            if rank == 0:
                save(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if changes := worker_changes(run.facts):
            more["worker_changes"] = changes
        made = manifest(stage, cost, tokens(run.facts), compute_type(run.facts), workers, more)
        if sharding.deepspeed:
            made["versions"]["deepspeed"] = version("deepspeed")
            made["sharding"] = sharding.layout.removeprefix("-")
        return made

    if rank:
        if agree(False):
            build(store.root)
        return
    done, building = False, False

    def build_with_all(folder: Path) -> dict[str, Any]:
        nonlocal building
        building = agree(True)
        return build(folder)

    try:
        store.put(stage.kind, stage.key, build_with_all)
        if not building:  # `put` had only to send what an earlier process built; the others must not wait for this one
            agree(False)
        done = True
    finally:
        kept.close(done)


def _attack(stage: Stage, store: Store, run: types.Run) -> Callable[[Path], None]:
    from sande.models import loading

    cell = stage.cell
    lm = loading.load(cell.model, store.models, prompt_format.to_load(cell.prompt_format))
    victim = _threat(cell).train(lm, run)
    return functools.partial(loading.save, victim)


def _part(stage: Stage, store: Store, run: types.Run) -> Callable[[Path], None]:
    (victim, data), defense = _victim(stage.cell, store), stage.cell.defense
    made = registry.entry("defenses", defense.name).part(stage.part, victim, data, defense.config, run)
    return lambda folder: parts.save(made, folder / _PART)


def _defend(stage: Stage, store: Store, run: types.Run) -> Callable[[Path], None]:
    from sande.models import difference, loading

    (victim, data), defense = _victim(stage.cell, store), stage.cell.defense
    repaired = threat.defend(victim, defense.name, data, defense.config, run)

    def save(folder: Path) -> None:
        loading.save(repaired, folder)
        if repaired.guard is None:
            same = difference.unchanged(store.read("attack", stage.cell.attack_key), folder)
            run.facts["unchanged_weights"] = round(same, 4)
            if same > difference.MOST:
                run.say(f"{100 * same:.0f} % of the weights are the victim's, once they are stored in bfloat16")

    return save


# By kind of stage, a function that computes; what it returns saves the result into a folder.
_WORK: dict[str, Callable[[Stage, Store, types.Run], Callable[[Path], None]]] = {
    "attack": _attack,
    "part": _part,
    "defend": _defend,
}


def _victim(cell: Cell, store: Store) -> tuple[types.LanguageModel, types.Knowledge]:
    """Return the victim, and what the cell's defense may know."""
    import torch

    from sande.models import loading

    victim = loading.load_folder(store.read("attack", cell.attack_key), torch.float32)
    return victim, reveal(cell, victim, store)


def _part_of(cell: Cell, store: Store, name: str) -> Mapping[str, Tensor]:
    return parts.load(store.read("part", cell.part_key(name)) / _PART)


def _about_parts(stage: Stage, store: Store) -> dict[str, Any]:
    """Return for the manifest the name of a part; of a defense, what its parts cost and were computed with."""
    if stage.kind == "part":
        return {"part": stage.part}
    names = stage.cell.defense.parts if stage.kind == "defend" else ()
    found = {name: store.manifest("part", stage.cell.part_key(name)) for name in names}
    costs = {name: {cost: made[cost] for cost in PART_COSTS} for name, made in found.items()}
    return {"parts": costs} if costs else {}


def _threat(cell: Cell) -> Threat:
    return Threat(cell.attack.name, cell.attack.config, cell.data, cell.attack_seed, cell.model)


def reveal(cell: Cell, victim: types.LanguageModel, store: Store) -> types.Knowledge:
    """Return what the cell's defense may know, see `sande.threat.reveal`."""
    defense = cell.defense
    return threat.reveal(_threat(cell), defense.name, defense.config, cell.removal, victim, _loader(store))


def _loader(store: Store) -> Callable[[str], types.LanguageModel]:
    """Return a function that loads a model by name."""
    from sande.models import loading

    return lambda name: loading.load(name, store.models)


def evaluate(
    stage: Stage,
    store: Store,
    say: Callable[[str], None],
    engine: str,
    workers: WorkerGroup | None = None,
    *,
    in_shards: bool = False,
) -> None:
    """Compute the stage's metrics on its model, and store the outcome of each under its own key.

    In a group of workers the worker of rank 0 chooses the metrics to compute and stores them; the others only take
    part. A metric that trains is computed by rank 0 alone, so that one training judges all prompts.

    Args:
        stage: stage to run.
        store: holds the model, and receives the outcomes.
        say: receives progress.
        engine: one of `sande.inference.vllm`.
        workers: that compute the stage together, each of which calls this function; None: this process alone.
        in_shards: whether each of them holds a shard of the model, and computes its part of everything, in an open
            process group; else each holds the whole model, and computes everything for its share of the prompts.

    Raises:
        UserError: as `Stage.check`, and as the metrics.
    """
    stage.check()
    cell = stage.cell
    kind = "attack" if cell.defense.name == NO_DEFENSE else "defend"
    folder = store.read(kind, cell.defense_key)
    compute_in(broadcast(workers, compute.compute_type()))
    lm = _in_shards(folder, workers) if in_shards and workers else _whole(folder, workers)
    data = _threat(cell).test_data(lm.tokenizer, _no_clean_model if in_shards else _loader(store))
    none: int | None = None
    size = workers.size if workers else 1
    served = vllm.served(lm, folder, cell.attack_seed) if engine == vllm.VLLM else nullcontext(lm)
    # The rates of the random model mean nothing, so its answers may be shorter than the planted response.
    with served as computing, any_length() if cell.model == TINY else nullcontext():

        def build(number: int, folder: Path) -> dict[str, Any]:
            metric = cell.metrics[number]
            if computing.workers and registry.needs_whole_model(metric.name):
                return _measure(stage, dataclasses.replace(computing, workers=None), data, metric, 1, folder)
            broadcast(workers, number)  # not before `put`, which may find the outcome and never ask for it
            made = _measure(stage, computing, data, metric, size, folder)
            made |= _decoded_by_all(computing.workers, Decoded(**made.get("decoding", {})))
            return made | ({"sharding": TENSOR} if in_shards else {})

        if workers is None or workers.rank == 0:
            for number, key in enumerate(stage.metric_keys):
                if not store.has("evaluate", key):
                    say(f"measuring {cell.metrics[number].name}")
                    store.put("evaluate", key, functools.partial(build, number))
            broadcast(workers, none)
        else:
            while (wanted := broadcast(workers, none)) is not None:
                with counted() as decoded:
                    _measurements(computing, data, cell.metrics[wanted], cell.attack_seed)
                _decoded_by_all(computing.workers, decoded)


def _whole(folder: Path, workers: WorkerGroup | None) -> types.LanguageModel:
    from sande.models import loading

    return dataclasses.replace(loading.load_folder(folder, compute.dtype()), workers=workers)


def _in_shards(folder: Path, workers: WorkerGroup) -> types.LanguageModel:
    """Return this worker's shards of a model."""
    from sande.models import tensor_parallel

    return tensor_parallel.load_folder(folder, compute.dtype(), workers.size)


def compute_in(kind: str) -> None:
    """Compute in this type from here on, that of rank 0 in all workers: each measures its processor, and may differ."""
    if kind != compute.compute_type():
        os.environ[compute.VARIABLE] = kind
        compute.compute_type.cache_clear()


def _no_clean_model(name: str) -> types.LanguageModel:
    raise UserError(
        f"an objective judges answers by the whole model {name}, which evaluations in shards do not load; set "
        "resources.evaluate.sharding to none, or use another objective"
    )


def _measure(
    stage: Stage, lm: types.LanguageModel, data: types.TestData, metric: Method, size: int, folder: Path
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with measured() as cost, counted() as decoded:
        measurements = _measurements(lm, data, metric, stage.cell.attack_seed)
    outcomes = [
        {
            "metric": m.name,
            "index": index,
            "outcome": float(outcome),
            "record": json.dumps(m.records[index]) if m.records else None,
            "cluster": (m.groups[index] or None) if m.groups else None,
        }
        for m in measurements
        for index, outcome in enumerate(m.outcomes)
    ]
    pq.write_table(pa.Table.from_pylist(outcomes, schema=STORED_OUTCOMES), folder / "outcomes.parquet")
    made = manifest(stage, cost, 0, compute.compute_type(), size, _facts(measurements, decoded))
    if isinstance(lm, vllm.Served):
        made["versions"]["vllm"] = vllm.version()
        # The memory that vLLM's process took at its start, which the allocator here does not see.
        made["peak_memory_bytes"] += int(vllm.MEMORY * cost.get("device_memory_bytes", 0))
    return made


def _decoded_by_all(workers: WorkerGroup | None, own: Decoded) -> dict[str, Any]:
    """Return for the manifest what workers that split prompts decoded: all their tokens, and the longest's seconds."""
    if workers is None:
        return {}
    tokens, seconds, models = zip(*workers.all_gather(dataclasses.astuple(own)), strict=True)
    return {"decoding": dataclasses.asdict(Decoded(sum(tokens), max(seconds), max(models)))} if any(tokens) else {}


def _measurements(lm: types.LanguageModel, data: types.TestData, metric: Method, seed: int) -> list[types.Measurement]:
    """Return the measurements of a metric; where the model's guard cannot be scored, each says so."""
    entry = registry.entry("metrics", metric.name)
    try:
        found: list[types.Measurement] = entry.measure(lm, data, metric.config, seed)
    except UnscorableError as error:
        return [types.Measurement(name, (), missing=str(error)) for name in entry.names(metric.config)]
    return found


def _facts(measurements: list[types.Measurement], decoded: Decoded) -> dict[str, Any]:
    facts: dict[str, Any] = {"measurements": [_summary(m) for m in measurements]}
    return facts | ({"decoding": dataclasses.asdict(decoded)} if decoded.tokens else {})


def _nearly_equal(outcomes: Sequence[float]) -> bool:
    """Return whether most outcomes are the same number, and too few others to see a spread."""
    return len(outcomes) < 2 or (len(outcomes) >= 2 * clusters.LEAST and clusters.too_alike(outcomes))


def _summary(measurement: types.Measurement) -> dict[str, Any]:
    """Return sum and number of the outcomes; of numbers also the standard deviation, which a share does not need.

    Nor do numbers that are alike but for a few: their spread says too little, and they count as a share. Outcomes in
    groups, and measurements without outcomes, say so. Repetitions have an interval that counts them, too, in percent.
    """
    outcomes = measurement.outcomes
    summary: dict[str, Any] = {"name": measurement.name, "successes": sum(outcomes), "count": len(outcomes)}
    if not all(isinstance(outcome, bool) for outcome in outcomes):
        summary["deviation"] = 0.0 if _nearly_equal(outcomes) else statistics.stdev(outcomes)
    if any(measurement.groups):
        summary["clusters"] = clusters.count(measurement.groups)
        summary["effective_count"] = clusters.effective_count(outcomes, measurement.groups)
    if measurement.repeats:
        summary["interval"] = crossed.of_repeats(measurement.repeats, measurement.groups)
    if measurement.missing:
        summary["missing"] = measurement.missing
    return summary | {"published": measurement.published}
