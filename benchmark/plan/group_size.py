"""Choose the number of workers of a group that lacks some."""

from __future__ import annotations

from benchmark.plan.batches import divides
from benchmark.plan.stage import Stage


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
