"""Predict the wall time of a grid on N GPUs, or with N stages at a time on a CPU; see `benchmark.forecast.measured`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmark.forecast.cost import HOUR, format_gpu_time
from benchmark.forecast.measured import (
    BASES,
    CPU,
    OVERHEAD,
    SHIPPED,
    SHIPPED_OTHER,
    Costs,
    Setup,
    Timer,
    is_cpu,
    is_on,
    noted,
    on_cpu,
    present,
    samples_of,
)
from benchmark.forecast.scaling import EFFICIENCY, Scaling, scaling
from benchmark.forecast.timings import CORES, Overhead, shipped
from benchmark.grid.resources import Resources, ResourcesByStage
from benchmark.grid.stage_resources import distinct
from benchmark.io.units import counted
from benchmark.plan import memory
from benchmark.plan.memory import KINDS
from benchmark.plan.plan import Plan
from benchmark.plan.schedule import side_by_side, simulate, widths
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store
from sande.compute import expected_type
from sande.errors import UserError

GPU, CPUS = "GPU", "CPU"  # what a stage needs
PAPERS = ("h800", "h100")  # machines for which the paper's times are used where nothing was measured


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted time of a grid.

    Attributes:
        wall: seconds from start to end of the command.
        busy: seconds in which slots are in use, summed over the slots.
        slots: stages at a time, if all were as the smallest and none shares a GPU.
        gpu_seconds: seconds of the stages, each times the GPUs that it holds.
        basis: number of stages by the basis of their seconds; a stage counts by its worst piece of work.
        left_out: models that were never measured, and data of unknown size; work with them counts as 0 s.
        sharing: whether some stages get less than a whole GPU.
        overhead: overhead of the run, apart from its stages.
        scaling: speed of several workers; None where each stage has one.
        longest: keys of the stages that decide the time, each begun when the one before it ended.
        overhead_is_own: whether the overhead is that of the last run on this store.
    """

    wall: float
    busy: float
    slots: int
    gpu_seconds: float
    basis: Mapping[str, int]
    left_out: tuple[str, ...]
    sharing: bool
    overhead: Overhead
    scaling: Scaling | None
    longest: tuple[str, ...]
    overhead_is_own: bool = False


class Forecaster:
    """Predictions of one plan with different resources."""

    def __init__(self, plan: Plan, store: Store, gpus: int, machine: str | None, assumed: float = EFFICIENCY) -> None:
        """Read the measurements.

        Args:
            plan: plan of a grid.
            store: its manifests are the measurements.
            gpus: number of GPUs; on a CPU, number of stages at a time.
            machine: part of the name of the device whose measurements count, in any case; `cpu`: any processor that
                computes in this machine's type, and shipped timings where the store has none; None: all devices.
            assumed: efficiency of each doubling of workers where none was measured.

        Raises:
            UserError: the store has no measurement on such a machine, and no other times are known for it.
        """
        every = [each for kind in KINDS for each in store.manifests(kind)]
        manifests = [each for each in every if is_on(str(each.get("device", "")), machine)]
        if machine and not manifests and machine.lower() not in (CPU, *PAPERS):
            devices = sorted({str(each["device"]) for each in every if "device" in each})
            raise UserError(
                f"--machine {machine}: no stage in {store.root} was measured on it; use one of: "
                f"{', '.join([*devices, CPU, *PAPERS])} ({CPU} has shipped timings, {' and '.join(PAPERS)} have the "
                "paper's times)"
            )
        self._plan, self._gpus, self._cpu = plan, gpus, is_cpu(machine)
        self._peaks = memory.Peaks(manifests)
        self._there, self._noted = present(plan, store), noted(store)
        if self._cpu:
            compute_type = expected_type()
            timings = shipped(compute_type)
            self._overhead = self._noted or timings.overhead
            self._scaling = Scaling(assumed)
            self._costs = Costs(on_cpu(store, compute_type), timings.samples)
        else:
            samples = list(samples_of(manifests))
            self._overhead = self._noted or OVERHEAD
            self._scaling = scaling(samples, assumed)
            self._costs = Costs(samples, paper=True, scaling=self._scaling)

    def predict(self, resources: ResourcesByStage) -> Prediction:
        """Return the predicted time with these resources.

        Raises:
            UserError: a stage needs more GPUs than there are.
        """
        missing = self._plan.missing
        of = {stage.key: resources.of(stage) for stage in missing}
        needs = {each: self._needs_of(each) for each in distinct(missing, resources)}
        most = max((each[GPU] for each in needs.values()), default=0.0)
        if most > self._gpus:
            raise UserError(f"--gpus {self._gpus}: a stage needs {most:g} GPUs; raise --gpus, or lower resources")
        slots, width = widths(
            needs, {each: max(1, int(self._gpus / max(need.values()))) for each, need in needs.items()}
        )
        gpu_seconds: list[float] = []

        def share(stage: Stage) -> float:
            return self._share(stage, of[stage.key])

        def setup(stage: Stage) -> Setup:
            grouped = of[stage.key].grouped(stage.kind) and not self._cpu
            return Setup(of[stage.key].workers if grouped else 1, grouped)

        timer = Timer(self._costs, self._there, self._overhead.stage, setup)

        def seconds(stage: Stage) -> float:
            took = timer.seconds(stage)
            gpu_seconds.append(took * needs[of[stage.key]][GPU] * share(stage))
            return took

        forecast = simulate(self._plan, slots, seconds, share, lambda stage: width[of[stage.key]])
        longest = [forecast.last] if missing else []
        while longest and longest[-1] in forecast.before:
            longest.append(forecast.before[longest[-1]])
        return Prediction(
            wall=self._overhead.around + (self._overhead.start if missing else 0.0) + forecast.wall,
            busy=forecast.busy,
            slots=slots,
            gpu_seconds=sum(gpu_seconds),
            basis={found: number for found in BASES if (number := timer.stages_by(found))},
            left_out=tuple(sorted(timer.left_out)),
            sharing=not self._cpu and any(share(stage) < 1 for stage in missing),
            overhead=self._overhead,
            scaling=self._scaling if any(setup(stage).workers > 1 for stage in missing) else None,
            longest=tuple(reversed(longest)),
            overhead_is_own=self._noted is not None,
        )

    def _needs_of(self, resources: Resources) -> dict[str, float]:
        """Return the GPUs of a stage, and its CPUs, counted in the part of a machine's CPUs that comes with a GPU.

        That part is what a worker without a GPU gets, too.
        """
        if self._cpu:
            return {GPU: 1.0}
        gpus = 1.0 if resources.gpus is None else resources.gpus
        return {GPU: resources.workers * gpus, CPUS: resources.workers * (min(1.0, gpus) or 1.0)}

    def _share(self, stage: Stage, resources: Resources) -> float:
        if resources.grouped("defend"):
            return 1.0
        if self._cpu:
            return side_by_side(resources.side_by_side)(stage)
        return self._peaks.share(stage) if resources.gpus is None else 1.0


def predict(plan: Plan, store: Store, resources: ResourcesByStage, gpus: int, machine: str | None) -> Prediction:
    """Return the predicted time of a plan's missing stages; arguments and errors are those of `Forecaster`."""
    return Forecaster(plan, store, gpus, machine).predict(resources)


def summary(plan: Plan, store: Store, resources: ResourcesByStage, gpus: int, machine: str | None) -> tuple[str, str]:
    """Return the prediction of `predict` and its bases, in words; arguments and errors are those of `Forecaster`."""
    return in_words(predict(plan, store, resources, gpus, machine), len(plan.missing), gpus, machine)


def in_words(made: Prediction, stages: int, gpus: int, machine: str | None) -> tuple[str, str]:
    """Return a prediction and its bases in words.

    Args:
        made: prediction of `Forecaster.predict`.
        stages: number of stages that are missing.
        gpus: as for `Forecaster`.
        machine: as for `Forecaster`.
    """
    if not stages:
        return f"Forecast: {span(made.wall)}, as nothing is left to run", ""
    unknown = f"{', '.join(made.left_out)} (never measured{f' on {machine}' if machine else ''}, or of unknown size)"
    if not made.basis:
        return f"Forecast: none without times for {unknown}", ""
    cpu = is_cpu(machine)
    place = f"with {counted(gpus, 'stage')} at a time" if cpu else f"on {gpus} GPUs" if gpus > 1 else "on one GPU"
    work = span(made.busy) if cpu else format_gpu_time(made.gpu_seconds)
    return (
        f"Forecast {place}{f' ({machine})' if machine else ''}: {span(made.wall)} for {work} of work, "
        f"{made.busy / (made.slots * made.wall):.0%} in use{f'; {made.scaling}' if made.scaling else ''}"
    ), _reasons(made, unknown)


def _reasons(made: Prediction, unknown: str) -> str:
    once, each = made.overhead.around + made.overhead.start, made.overhead.stage
    source = "as in the last run on this store" if made.overhead_is_own else "as measured on two CPU cores"
    notes = [
        ", ".join(f"{counted(count, 'stage')} by {found}" for found, count in made.basis.items()),
        f"without {unknown}" if made.left_out else "",
        f"shipped timings are of {CORES} cores for each stage" if {SHIPPED, SHIPPED_OTHER} & set(made.basis) else "",
        "assuming that stages that share a GPU are as fast as alone" if made.sharing else "",
        f"plus {once:.0f} s, and {each:.1f} s a stage, {source}",
    ]
    return f"Forecast: {'; '.join(filter(None, notes))}"


def span(seconds: float) -> str:
    """Return seconds, minutes or hours, with at least two digits."""
    for unit, size in (("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
