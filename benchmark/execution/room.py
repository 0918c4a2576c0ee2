"""How many stages of a run the cluster holds at a time, by the resources that each asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmark.execution import tracking
from benchmark.execution.autoscaling import Group, group
from benchmark.execution.cluster import at_once, capacity, worker_resources
from benchmark.grid.resources import Resources, ResourcesByStage
from benchmark.grid.stage_resources import distinct
from benchmark.plan import preflight
from benchmark.plan.schedule import widths
from benchmark.plan.stage import Stage


@dataclass(frozen=True, slots=True)
class Room:
    """Room of a run's stages on the cluster.

    Attributes:
        of: returns the resources of a stage, with one worker where the stage is one process.
        per_worker: amounts of Ray's resources that a worker gets, by the resources of its stage.
        slots: of the cluster.
        widths: slots of a stage, by its resources.
        slot: what a slot has: as much as the smallest stage asks for, or as one worker of a group that may shrink.
    """

    of: Callable[[Stage], Resources]
    per_worker: Mapping[Resources, dict[str, float]]
    slots: int
    widths: Mapping[Resources, float]
    slot: Group

    @property
    def sorts(self) -> tuple[Resources, ...]:
        """Return the resources that stages have, each once."""
        return tuple(self.per_worker)

    def width(self, stage: Stage) -> float:
        """Return the slots of a stage."""
        return self.widths[self.of(stage)]

    def least(self, stage: Stage) -> float:
        """Return the slots with which a stage may start where nodes were lost."""
        resources = self.of(stage)
        return self.width(stage) * resources.least_workers / resources.workers

    def asks(self, stage: Stage) -> Group:
        """Return what a stage asks for."""
        resources = self.of(stage)
        return group(resources.workers, self.per_worker[resources])

    def timeout(self, stage: Stage) -> float | None:
        """Return the seconds that a stage may take; None: no limit."""
        return self.of(stage).timeout

    def number(self, stage: Stage) -> int:
        """Return the place of a stage's resources among `sorts`."""
        return self.sorts.index(self.of(stage))


def room_of(stages: Sequence[Stage], resources: ResourcesByStage) -> Room:
    """Return the room of stages on the cluster.

    Raises:
        UserError: the cluster lacks what a stage asks for, or a setting needs what is not installed.
    """
    per_worker: dict[Resources, dict[str, float]] = {}
    at_a_time: dict[Resources, int] = {}
    for each, alike in distinct(stages, resources).items():
        per_worker[each] = worker_resources(each)
        if any(stage.kind == "evaluate" for stage in alike):
            preflight.check_engine(each.engine, per_worker[each].get("GPU", 0))
        preflight.check_sharding(each)
        tracking.check(each.report_to)
        at_a_time[each] = at_once(each, per_worker[each])
    amounts = dict(per_worker)
    for each in per_worker:
        if each.least_workers < each.workers:  # then a slot is no larger than one of them
            one = replace(each, workers=1, min_workers=None)
            amounts[one], at_a_time[one] = per_worker[each], capacity(per_worker[each])
    needs = {each: {name: amount * each.workers for name, amount in of.items()} for each, of in amounts.items()}
    smallest = max(at_a_time, key=at_a_time.__getitem__, default=Resources())
    slot = group(smallest.workers, amounts.get(smallest, {}))
    return Room(resources.of, per_worker, *widths(needs, at_a_time), slot)
