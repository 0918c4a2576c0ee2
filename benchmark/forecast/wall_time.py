"""Predict the wall time of a grid on N GPUs, or with N stages at a time; see `benchmark.forecast.measured`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmark.forecast.cost import HOUR, format_gpu_time
from benchmark.forecast.measured import (
    BASES,
    OVERHEAD,
    Costs,
    Timer,
    is_cpu,
    is_on,
    overhead_of,
    present,
    samples_of,
)
from benchmark.forecast.timings import Overhead
from benchmark.grid.resources import Resources
from benchmark.plan import memory
from benchmark.plan.memory import KINDS
from benchmark.plan.plan import Plan
from benchmark.plan.schedule import side_by_side, simulate, whole
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store
from sande.errors import UserError

PAPERS = ("h800", "h100")  # machines for which the paper's times are used where nothing was measured


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted time of a grid.

    Attributes:
        wall: seconds from start to end of the command.
        busy: seconds in which slots are in use, summed over the slots.
        slots: stages at a time, if none shares a GPU.
        basis: number of stages by the basis of their seconds; a stage counts by its worst piece of work.
        left_out: models that were never measured, and data of unknown size; work with them counts as 0 s.
        sharing: whether some stages get less than a whole GPU.
        overhead: overhead of the run, apart from its stages.
    """

    wall: float
    busy: float
    slots: int
    basis: Mapping[str, int]
    left_out: tuple[str, ...]
    sharing: bool
    overhead: Overhead


def predict(plan: Plan, store: Store, resources: Resources, gpus: int, machine: str | None) -> Prediction:
    """Return the predicted time of a plan's missing stages.

    Args:
        plan: plan of a grid.
        store: its manifests are the measurements.
        resources: resources of a stage.
        gpus: number of GPUs; on a CPU, number of stages at a time.
        machine: part of the name of the device whose measurements count, in any case; `cpu`: any processor; None: all.

    Raises:
        UserError: the store has no measurement on such a machine, or a stage needs more GPUs than `gpus`.
    """
    every = [each for kind in KINDS for each in store.manifests(kind)]
    manifests = [each for each in every if is_on(str(each.get("device", "")), machine)]
    if machine and not manifests and machine.lower() not in PAPERS:
        devices = sorted({str(each["device"]) for each in every if "device" in each})
        raise UserError(
            f"--machine {machine}: no stage in {store.root} was measured on it; use one of: "
            f"{', '.join([*devices, *PAPERS])} ({' and '.join(PAPERS)} have the paper's times)"
        )
    cpu = is_cpu(machine)
    each = 1.0 if cpu else resources.workers * (resources.gpus or 1.0)
    slots = int(gpus / each)
    if slots < 1:
        raise UserError(f"--gpus {gpus}: a stage needs {each:g} GPUs; raise --gpus, or lower resources")
    share: Callable[[Stage], float] = whole
    if not resources.grouped("defend") and cpu:
        share = side_by_side(resources.side_by_side)
    elif not resources.grouped("defend") and resources.gpus is None:
        share = memory.Peaks(manifests).share
    overhead = overhead_of(store)
    one_evaluates = not resources.grouped("evaluate")
    costs = Costs(samples_of(manifests), paper=not cpu)
    timer = Timer(costs, present(plan, store), max(1.0, each), one_evaluates, overhead.stage)
    forecast = simulate(plan, slots, timer.seconds, share)
    return Prediction(
        wall=overhead.around + (overhead.start if plan.missing else 0.0) + forecast.wall,
        busy=forecast.busy,
        slots=slots,
        basis={found: number for found in BASES if (number := timer.stages_by(found))},
        left_out=tuple(sorted(timer.left_out)),
        sharing=not cpu and any(share(stage) < 1 for stage in plan.missing),
        overhead=overhead,
    )


def summary(plan: Plan, store: Store, resources: Resources, gpus: int, machine: str | None) -> tuple[str, str]:
    """Return the prediction of `predict` and its bases, in words; arguments and errors are those of `predict`."""
    made = predict(plan, store, resources, gpus, machine)
    if not plan.missing:
        return f"Forecast: {_span(made.wall)}, as nothing is left to run", ""
    unknown = f"{', '.join(made.left_out)} (never measured{f' on {machine}' if machine else ''}, or of unknown size)"
    if not made.basis:
        return f"Forecast: none without times for {unknown}", ""
    cpu = is_cpu(machine)
    place = f"with {gpus} stages at a time" if cpu else f"on {gpus} GPUs" if gpus > 1 else "on one GPU"
    work = _span(made.busy) if cpu else format_gpu_time(made.busy * gpus / made.slots)
    return (
        f"Forecast {place}{f' ({machine})' if machine else ''}: {_span(made.wall)} for {work} of work, "
        f"{made.busy / (made.slots * made.wall):.0%} in use"
    ), _reasons(made, unknown)


def _reasons(made: Prediction, unknown: str) -> str:
    once, each = made.overhead.around + made.overhead.start, made.overhead.stage
    source = "as measured on two CPU cores" if made.overhead is OVERHEAD else "as in the last run on this store"
    notes = [
        ", ".join(f"{count} stages by {found}" for found, count in made.basis.items()),
        f"without {unknown}" if made.left_out else "",
        "assuming that stages that share a GPU are as fast as alone" if made.sharing else "",
        f"plus {once:.0f} s, and {each:.1f} s a stage, {source}",
    ]
    return f"Forecast: {'; '.join(filter(None, notes))}"


def _span(seconds: float) -> str:
    """Return seconds, minutes or hours, with at least two digits."""
    for unit, size in (("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
