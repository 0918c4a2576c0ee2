"""Forecast a grid on this machine's CPU, as `plan` and `run` print it; see `benchmark.forecast.measured`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmark.forecast.cost import HOUR, basis, estimate, format_gpu_time, pieces
from benchmark.forecast.measured import SHIPPED, SHIPPED_OTHER, Costs, Setup, Timer, noted, on_cpu, present
from benchmark.forecast.timings import CORES, Overhead, shipped
from benchmark.grid.resources import Kind, Resources, ResourcesByStage
from benchmark.grid.stage_resources import distinct
from benchmark.io.units import joined
from benchmark.plan.memory import KINDS
from benchmark.plan.plan import Plan
from benchmark.plan.schedule import side_by_side, simulate, widths
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store
from sande.compute import ComputeType, expected_type


@dataclass(frozen=True, slots=True)
class Part:
    """Stages of one kind whose time has one basis.

    Attributes:
        kind: attack, part, defend or evaluate.
        basis: one of BASES.
        stages: number of stages.
        seconds: total of the stages, one after the other.
    """

    kind: Kind
    basis: str
    stages: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Here:
    """Forecast of a plan's missing stages on this machine's CPU.

    Attributes:
        seconds: from start to end of `run`, without the work of `untimed` and `unknown`.
        stages: number of stages to run.
        by_stage: seconds of each stage by key; empty where `untimed` or `unknown` is not.
        parts: seconds by kind and basis; empty where no stage has a timing.
        untimed: models that were never timed on a CPU.
        gpu_seconds: seconds of the stages of `untimed` by the paper's times; 0 where it has none.
        unknown: data sets of unknown size.
        cores: cores of this machine.
        compute_type: type in which models will most likely compute.
        at_once: number of defenses, parts or evaluations that run at a time.
        overhead: overhead of a run, apart from its stages.
        overhead_is_own: whether the overhead is that of the last run on this store.
    """

    seconds: float
    stages: int
    by_stage: Mapping[str, float]
    parts: tuple[Part, ...]
    untimed: tuple[str, ...]
    gpu_seconds: float
    unknown: tuple[str, ...]
    cores: int
    compute_type: ComputeType
    at_once: int
    overhead: Overhead
    overhead_is_own: bool

    @property
    def source(self) -> str:
        """Return in words whose timings the seconds are based on."""
        whose = {part.basis.split()[0] for part in self.parts}
        if whose == {"own"}:
            return "own timings of this store"
        return "shipped timings" if whose == {"shipped"} else "own and shipped timings"


def here(plan: Plan, store: Store, resources: ResourcesByStage) -> Here:
    """Return the forecast of a plan's missing stages on this machine's CPU; imports neither torch nor Ray.

    Args:
        plan: plan of a grid.
        store: provides own timings (manifests) and the overhead of its last run.
        resources: resources of each stage.
    """
    compute_type, cores = expected_type(), _cores()
    timings, noted_overhead = shipped(compute_type), noted(store)
    overhead = noted_overhead or timings.overhead
    sorts = distinct(plan.missing, resources)
    cpus = {each: _cpus(each, cores) for each in sorts}
    slots, width = widths(
        {each: {"CPU": number} for each, number in cpus.items()}, {each: cores // cpus[each] for each in sorts}
    )

    def share(stage: Stage) -> float:
        return side_by_side(_beside(resources.of(stage)))(stage)

    def setup(stage: Stage) -> Setup:
        given = resources.of(stage)
        return Setup(given.workers, given.grouped(stage.kind), cpus[given], share(stage))

    own = on_cpu(store, compute_type) if plan.missing else ()
    timer = Timer(Costs(own, timings.samples), present(plan, store), overhead.stage, setup)
    by_stage: dict[str, float] = {}

    def seconds(stage: Stage) -> float:
        by_stage[stage.key] = timer.seconds(stage)
        return by_stage[stage.key]

    sharing = {resources.of(stage) for stage in plan.missing if stage.kind != "attack"}
    forecast = simulate(plan, slots, seconds, share, lambda stage: width[resources.of(stage)])
    untimed = [stage for stage in plan.missing if stage.settings["model"] in timer.untimed]
    return Here(
        seconds=overhead.around + (overhead.start if plan.missing else 0.0) + forecast.wall,
        stages=len(plan.missing),
        by_stage=by_stage if not timer.untimed and not timer.unknown else {},
        parts=tuple(
            Part(kind, found, len(seconds), sum(seconds))
            for (kind, found), seconds in sorted(timer.parts.items(), key=lambda item: KINDS.index(item[0][0]))
        ),
        untimed=tuple(sorted(timer.untimed)),
        gpu_seconds=sum(estimate(untimed).seconds.values()),
        unknown=tuple(sorted(timer.unknown)),
        cores=cores,
        compute_type=compute_type,
        at_once=max((int(slots / width[each]) * _beside(each) for each in sharing), default=1),
        overhead=overhead,
        overhead_is_own=noted_overhead is not None,
    )


def _cpus(resources: Resources, cores: int) -> int:
    """Return the cores that a stage gets."""
    workers = resources.workers
    return min(cores, (resources.cpus or max(1, cores // workers)) * workers)


def _beside(resources: Resources) -> int:
    """Return the number of defenses, parts or evaluations that share the cores of one stage."""
    return 1 if resources.grouped("defend") else resources.side_by_side


def trainings_here(stages: Iterable[Stage], store: Store) -> str:
    """Return in words the time of stages, one after the other, on this machine's CPU; else their GPU-hours."""
    stages = list(stages)
    compute_type = expected_type()
    costs = Costs(on_cpu(store, compute_type), shipped(compute_type).samples)
    known = [
        costs.seconds(piece, stage.cell.model, _cores()) for stage in stages for piece in pieces(stage, stage.cell)
    ]
    if None in known:
        return format_gpu_time(sum(estimate(stages).seconds.values()))
    return about(sum(each[0] for each in known if each))


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(made: Here) -> str:
    """Return the seconds of `here` in a sentence, with the models and data that they leave out."""
    if not made.stages:
        return "Nothing is left to run."
    clauses = []
    if made.parts or not (made.untimed or made.unknown):
        cores = f"{made.cores} core{'s' if made.cores > 1 else ''}"
        by = f", by {made.source}" if made.parts else ""
        clauses.append(f"About {about(made.seconds)} on this machine ({cores}, {made.compute_type}){by}")
    if made.untimed:
        paper = (
            f"{format_gpu_time(made.gpu_seconds)} on H800 cards by the paper's times"
            if made.gpu_seconds
            else "how long it takes is not known"
        )
        names, were = joined(made.untimed), "were" if len(made.untimed) > 1 else "was"
        clauses.append(f"{names} {were} never timed on a CPU: {paper}")
    if made.unknown:
        clauses.append(f"not counted: work on {joined(made.unknown)}, whose size is unknown")
    return "; ".join(clauses)


def reasons(made: Here) -> list[str]:
    """Return the bases of the seconds of `here`, in paragraphs."""
    clauses = [
        f"{part.stages} {part.kind}, {about(part.seconds)} one after the other: {part.basis}" for part in made.parts
    ]
    if made.parts:
        once, each = made.overhead.around + made.overhead.start, made.overhead.stage
        whose = "the last run on this store" if made.overhead_is_own else "shipped timings"
        clauses += [
            f"{about(once)} for plan, Ray and report, and {each:.1f} s a stage, are included: {whose}",
            f"defenses and evaluations run {made.at_once} at a time" if made.at_once > 1 else "one stage at a time",
            "The time of a stage is in proportion to its work, from the timing that is nearest in data and size.",
        ]
        if any(part.basis in (SHIPPED, SHIPPED_OTHER) for part in made.parts):
            clauses.append(
                f"Shipped timings are of {CORES} cores. On fewer cores a stage takes longer in proportion; "
                "on more the forecast assumes the same speed."
            )
    if made.gpu_seconds:
        clauses.append(f"GPU-hours: {basis()}")
    return clauses


def about(seconds: float) -> str:
    """Return seconds, minutes or hours, rounded to the precision of an estimate."""
    if seconds < 10:
        return f"{seconds:.1g} s"
    if seconds < 95:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 95 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 9.95 * HOUR else f"{seconds / HOUR:.0f} h"
