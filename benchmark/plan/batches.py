"""Which workers can split the batches of a stage's trainings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

from benchmark.grid.resources import ResourcesByStage
from benchmark.plan.stage import Stage
from sande.config import Training


def divides(stage: Stage, workers: int) -> bool:
    """Return whether as many workers can split each batch of an attack, a part or a defense.

    An evaluation has no limit. What a training refuses is in `sande.training.fit`.
    """
    return all(not size % (micro * workers) for size, micro in _batches(stage))


def group_size(stage: Stage, workers: int, room: int) -> int:
    """Return how many workers do a stage: as many as there is room for, if they can split its batches.

    Args:
        stage: to do.
        workers: that it has on a whole cluster.
        room: workers for which there is room.
    """
    if room >= workers:
        return workers
    return next((number for number in range(room, 1, -1) if divides(stage, number)), 1)


def problems(stages: Iterable[Stage], resources: ResourcesByStage) -> Iterator[str]:
    """Yield a sentence for each kind and model whose batches its workers cannot split."""
    seen: set[tuple[str, str, int]] = set()
    for stage in stages:
        workers, model = resources.of(stage).workers, stage.settings["model"]
        if (stage.kind, model, workers) not in seen and not divides(stage, workers):
            seen.add((stage.kind, model, workers))
            size = min(size for size, micro in _batches(stage) if size % (micro * workers))
            yield (
                f"resources: {workers} workers cannot split the batches of {size} rows of {stage.kind} {model}; set "
                f"resources.{stage.kind}.workers to a divisor of {size}, or these stages fail"
            )


def _batches(stage: Stage) -> Iterator[tuple[int, int]]:
    """Yield rows of a step and of a forward pass, for each training of a stage."""
    if stage.kind != "evaluate":
        method = stage.cell.attack if stage.kind == "attack" else stage.cell.defense
        for training in trainings(method.config):
            yield training.batch_size, training.micro_batch_size or 1


def trainings(config: Any) -> Iterator[Training]:
    """Yield the trainings among the settings of a method, at any depth."""
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, Training):
            yield value
        elif is_dataclass(value):
            yield from trainings(value)
