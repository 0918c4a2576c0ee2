"""Find models that fit no worker before anything trains, and evaluations whose workers cannot split their model.

Counted are weights alone, since activations depend on rows and batches: what passes may still lack memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.execution import nodes
from benchmark.execution.cluster import worker_resources
from benchmark.grid.resources import TENSOR, Resources, ResourcesByStage
from benchmark.plan.stage import Stage
from sande import compute, registry
from sande.errors import UserError
from sande.models import shapes
from sande.models.memory import HALF, WEIGHT
from sande.models.tensor_parallel import check_splits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ARTICLED = {"attack": "an attack", "part": "a part of a defense", "defend": "a defense"}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of models and machines before the first stage; each function may return None for unknown.

    Attributes:
        parameters: returns how many a model has, by its name.
        config: returns the configuration of a model.
        memory: returns the bytes of the largest GPU of the cluster or, with False, of its largest machine.
        on_gpu: returns whether workers with these resources have a GPU.
    """

    parameters: Callable[[str], int | None]
    config: Callable[[str], PreTrainedConfig | None]
    memory: Callable[[bool], int | None]
    on_gpu: Callable[[Resources], bool | None]


def here(cache: Path) -> Known:
    """Return what is known on this cluster; models that are built or converted once are in `cache`."""
    return Known(
        functools.cache(functools.partial(shapes.parameters, cache=cache)),
        functools.cache(functools.partial(shapes.config_of, cache=cache)),
        functools.cache(nodes.largest_memory),
        _on_gpu,
    )


def check(stages: Iterable[Stage], resources: ResourcesByStage, known: Known) -> None:
    """Refuse stages that cannot run, as far as that is known before they start.

    Raises:
        UserError: the weights of a model fit no worker, or the workers of an evaluation cannot split it.
    """
    for problem in problems(stages, resources, known):
        raise UserError(problem)


def problems(stages: Iterable[Stage], resources: ResourcesByStage, known: Known) -> Iterator[str]:
    """Yield a sentence for each kind and model of stages that do not fit."""
    seen: set[tuple[str, str, bool, Resources]] = set()
    for stage in stages:
        model, used = stage.settings["model"], resources.of(stage)
        case = (stage.kind, model, _guarded(stage), used)
        if case in seen:
            continue
        seen.add(case)
        if stage.kind == "evaluate" and used.sharding == TENSOR:
            config = known.config(model)
            if config is not None:
                check_splits(config, model, used.workers)
        if problem := _too_large(stage, used, known):
            yield problem


def _too_large(stage: Stage, used: Resources, known: Known) -> str | None:
    """Return a sentence if a worker has too little memory for the weights that it holds."""
    model, gpu = stage.settings["model"], known.on_gpu(used)
    parameters, there = known.parameters(model), None if gpu is None else known.memory(gpu)
    if parameters is None or there is None:
        return None
    shards, where = 1, "GPU" if gpu else "machine"
    if stage.kind == "evaluate":
        shards = used.workers if used.sharding == TENSOR else 1
        needed = parameters * (HALF if gpu or compute.expected_type() == "bf16" else WEIGHT)
        needed *= 2 if _guarded(stage) else 1
        what = "in an evaluation" + (", with the reference of its guard" if _guarded(stage) else "")
        fewest = max(2, -(-needed // there))
        fix = f"set resources.evaluate.sharding to {TENSOR} and resources.evaluate.workers to {fewest} or more"
    else:
        needed = WEIGHT * parameters
        what = f"before and after each training of {_ARTICLED[stage.kind]}, in float32 and whole"
        fix = f"use a smaller model, or a larger {where}"
    if needed / shards <= there:
        return None
    return (
        f"model {model}: its {parameters / 1e9:.3g} billion parameters take {needed / shards / 1e9:.2f} GB on each "
        f"worker {what}, and the largest {where} has {there / 1e9:.2f} GB; {fix}"
    )


def _guarded(stage: Stage) -> bool:
    """Return whether a stage evaluates a model with a guard, whose reference is a second model of the same size."""
    return stage.kind == "evaluate" and hasattr(registry.entry("defenses", stage.cell.defense.name), "rule")


def _on_gpu(resources: Resources) -> bool | None:
    """Return whether workers have a GPU; None where the nodes that have one are still to come."""
    try:
        return worker_resources(resources).get("GPU", 0) > 0
    except UserError:
        return None
