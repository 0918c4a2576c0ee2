"""The plan of a grid with searches, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from benchmark.forecast.cost import estimate, format_gpu_time
from benchmark.grid.load import Grid
from benchmark.grid.space import with_values
from benchmark.io.units import counted
from benchmark.plan.plan import Plan, make_plan, stages_of
from benchmark.plan.searches import pending, settled
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store


def plan_searches(grid: Grid, store: Store, cost: Callable[[Iterable[Stage]], str] | None = None) -> tuple[Plan, str]:
    """Return the plan of a grid, and a sentence on the searches before it, which is empty where none is left.

    While the values of a cell are not found, all its stages but the attack count as to run.

    Args:
        grid: as loaded.
        store: holds the artifacts that are done.
        cost: returns in words how long stages take; by default, their GPU-hours.
    """
    waiting = pending(grid, store)
    made = make_plan(settled(grid, store).cells, store)
    unknown = {stage.key for cell in waiting for stage in stages_of(cell) if stage.kind != "attack"}
    made = replace(made, done=made.done - unknown)
    if not grid.search or not waiting:
        return made, ""
    jobs = {job.key: job for job in waiting.values()}
    trials = [with_values(job.cell, values) for job in jobs.values() for values in job.proposals]
    stages = [stage for cell in trials for stage in stages_of(cell) if stage.kind in ("part", "defend")]
    more = cost(stages) if cost else format_gpu_time(sum(estimate(stages).seconds.values()))
    return made, (
        f"Search: {len(jobs)} to run between attack and defend, for {', '.join(grid.search.space or {})} of "
        f"{counted(len(waiting), 'cell')}: {counted(len(trials), 'trial')}, at most {more} more; the values are found "
        "at run time, so what depends on them counts as to run"
    )
