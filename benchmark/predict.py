"""How long a grid will take on so many GPUs, or on this machine's CPU: a simulation of the scheduler.

A stage takes what the most alike work took that was timed, in proportion to its size (`estimate.pieces`). The order in
which timings count, for each piece of work:

1. the store's own of the same method on the same model;
2. shipped ones (`benchmark.timings`) of the same method on the same model;
3. the store's own of other methods on that model;
4. shipped ones of other methods on that model;
5. the paper's times on H800 cards, whatever card is asked for.

Shipped ones come before own ones of other methods, since another method makes a larger error than another machine of
the same kind: a row of DPO costs several of SFT, and no two methods decode alike. They are of CPUs, so a forecast for
GPUs never uses them. One for this machine's CPU never uses the paper's, but names the models that would need them.

On a CPU only timings of CPUs count whose compute type is the one that this machine will use, see `sande.compute`.
Manifests of earlier versions do not say theirs and count as before. A stage takes longer in proportion where it gets
fewer threads than the timing had, and shorter where it gets two and the timing had one. Shipped timings are of two
cores, and more cores are taken to make no stage faster, so on many cores the forecast is an upper bound.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmark import memory
from benchmark.cell import Cell, Kind, Resources
from benchmark.estimate import BILLIONS, HOUR, Piece, basis, estimate, measured, pieces, told
from benchmark.keeping import DROPPED
from benchmark.plan import Plan
from benchmark.schedule import side_by_side, simulate, whole
from benchmark.stages import Stage
from benchmark.store import Store, write_atomically
from benchmark.timings import CORES, Overhead, Sample, shipped
from sande.compute import ComputeType, expected_type
from sande.errors import UserError

KINDS = ("attack", "defend", "evaluate", DROPPED)
CPU = "cpu"  # as a machine: any processor
PAPERS = ("h800", "h100")  # machines for which the paper's times stand in where nothing was measured
_FILE = "overhead.json"
_THREADS = re.compile(r" \((\d+) threads\)$")  # at the end of a CPU's name
ENOUGH = 50  # measurements of a method on a model

# What a prediction goes by, from good to bad.
OWN, SHIPPED, OWN_OTHER, SHIPPED_OTHER, PAPER = BASES = (
    "own timings of the method on the model",
    "shipped timings of the method on the model",
    "own timings of other methods on the model",
    "shipped timings of other methods on the model",
    "the paper's times on H800 cards, as they are",
)


# `run grids/smoke.yaml`, two cores of an AMD EPYC, Ray 2.60, torch 2.13; little else ran meanwhile.
OVERHEAD = Overhead(around=7.4, start=9.0, stage=0.08)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a grid will take.

    Attributes:
        wall: seconds from start to end of the command.
        busy: seconds in which slots are in use, all together.
        slots: stages at a time, if none shares a GPU.
        basis: number of stages by what their seconds were taken from, each by its worst part.
        left_out: models that were never measured, and data of unknown size; work with them takes no time here.
        sharing: whether some stages get less than a whole GPU.
        overhead: beside the stages.
    """

    wall: float
    busy: float
    slots: int
    basis: Mapping[str, int]
    left_out: tuple[str, ...]
    sharing: bool
    overhead: Overhead


@dataclass(frozen=True, slots=True)
class Part:
    """Stages of one kind whose time has one basis.

    Attributes:
        kind: attack, defend or evaluate.
        basis: one of BASES.
        stages: how many.
        seconds: of all of them, one after the other.
    """

    kind: Kind
    basis: str
    stages: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Here:
    """Forecast of a plan's missing stages on this machine's CPU.

    Attributes:
        seconds: from start to end of `run`, without what `untimed` and `unknown` name.
        stages: how many are left to run.
        by_stage: seconds of each by key; empty where `untimed` or `unknown` name something.
        parts: where the seconds come from, by kind and basis; empty where no stage has a timing.
        untimed: models that were never timed on a CPU.
        gpu_seconds: that the stages of `untimed` take by the paper's times; 0 where it has none.
        unknown: data sets whose size nobody knows.
        cores: of this machine.
        compute_type: that models will most likely compute in.
        at_once: defenses or evaluations that run at a time.
        overhead: of a run, apart from its stages.
        overhead_is_own: whether it is that of the last run on this store.
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
        """Whose timings the seconds rest on, in words."""
        whose = {part.basis.split()[0] for part in self.parts}
        if whose == {"own"}:
            return "own timings of this store"
        return "shipped timings" if whose == {"shipped"} else "own and shipped timings"


class Costs:
    """Seconds that work takes, by what was timed."""

    def __init__(self, own: Iterable[Sample], others: Iterable[Sample] = (), paper: bool = False) -> None:
        """Keep timings, by method and model.

        Args:
            own: of the store.
            others: shipped ones.
            paper: whether the paper's times stand in for what was never timed.
        """
        self._own, self._shipped = _Samples(own), _Samples(others)
        self._paper = paper
        self._known: dict[tuple[object, ...], tuple[float, str] | None] = {}

    def seconds(
        self, piece: Piece, model: str, cores: float | None = None, share: float = 1.0
    ) -> tuple[float, str] | None:
        """Return the seconds of a piece of work, and the one of BASES that they rest on; None where nothing is known.

        Args:
            piece: of a stage.
            model: that it works on.
            cores: of the slot that the stage runs in; None: on a GPU, or as many as the timings had.
            share: of the slot that the stage gets.
        """
        asked = piece.kind, piece.method, piece.data, piece.work, model, cores, share
        if asked not in self._known:
            self._known[asked] = self._look_up(piece, model, cores, share)
        return self._known[asked]

    def _look_up(self, piece: Piece, model: str, cores: float | None, share: float) -> tuple[float, str] | None:
        if math.isinf(piece.work):
            return None
        own = cores and cores * share
        shipped = cores and min(cores, CORES) * share
        method, any_method = (piece.kind, piece.method, model), (piece.kind, model)
        for alike, threads, found in (
            (self._own.by_method.get(method), own, OWN),
            (self._shipped.by_method.get(method), shipped, SHIPPED),
            (self._own.by_model.get(any_method), own, OWN_OTHER),
            (self._shipped.by_model.get(any_method), shipped, SHIPPED_OTHER),
        ):
            if alike:
                return _by_the_nearest(alike, piece, threads), found
        return (piece.work * BILLIONS[model], PAPER) if self._paper and model in BILLIONS else None


class _Samples:
    """Samples by method and model, and by model."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.by_method: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        self.by_model: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for sample in samples:
            self.by_method[sample.kind, sample.method, sample.model].append(sample)
            self.by_model[sample.kind, sample.model].append(sample)


def _by_the_nearest(samples: Sequence[Sample], piece: Piece, threads: float | None) -> float:
    """Return seconds in proportion to those of the samples nearest in data and size; of several, to their mean."""

    def distance(sample: Sample) -> tuple[bool, float]:
        ratio = piece.work / sample.work if piece.work else math.inf
        return sample.data != piece.data, round(abs(math.log(ratio)), 6) if piece.work else 0.0

    least = min(map(distance, samples))
    nearest = [sample for sample in samples if distance(sample) == least]
    seconds = sum(sample.seconds * _slower(sample, threads) for sample in nearest)
    return piece.work * seconds / sum(sample.work for sample in nearest)


def _slower(sample: Sample, threads: float | None) -> float:
    """Return how many times as long as a sample its work takes in so many threads; in more than two it is no faster."""
    if not threads or not sample.threads:
        return 1.0
    return sample.threads / min(threads, max(CORES, sample.threads))


def samples_of(manifests: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Yield what stages wrote down as samples, at most ENOUGH of a method on a model; work of no size is left out."""
    known: Counter[tuple[str, str, str]] = Counter()
    for manifest in manifests:
        method, model = _method(manifest), manifest["settings"]["model"]
        if known[manifest["kind"], method, model] == ENOUGH:
            continue
        piece = _piece(manifest)
        if piece and 0 < piece.work < math.inf:
            known[manifest["kind"], method, model] += 1
            threads = _THREADS.search(manifest["device"])
            yield Sample(
                piece.kind,
                method,
                model,
                piece.data,
                piece.work,
                manifest["seconds"],
                int(threads[1]) if threads else 0,
            )


def on_cpu(store: Store, compute_type: ComputeType) -> Iterator[Sample]:
    """Yield a store's timings of CPUs in this compute type, and those of CPUs that do not say theirs."""
    return samples_of(
        manifest
        for kind in KINDS
        for manifest in store.manifests(kind)
        if _is_on(manifest.get("device", ""), CPU) and manifest.get("compute_type") in (None, compute_type)
    )


def _method(manifest: Mapping[str, Any]) -> str:
    """Attack, defense, or what the metric measured."""
    if manifest["kind"] == "evaluate":
        return " ".join(measurement["name"] for measurement in manifest["measurements"])
    name: str = manifest["settings"]["attack" if manifest["kind"] == "attack" else "defense"]["name"]
    return name


def _piece(manifest: Mapping[str, Any]) -> Piece | None:
    """What the manifest tells of; None where its settings are none any more."""
    try:
        cell = Cell.parse(manifest["settings"])
    except UserError:
        return None
    keys = tuple(" ".join(measured(metric)) for metric in cell.metrics)
    stage = Stage(manifest["kind"], "", manifest["settings"], metric_keys=keys)
    return next((piece for piece in pieces(stage, cell) if piece.method == _method(manifest)), None)


def predict(plan: Plan, store: Store, resources: Resources, gpus: int, machine: str | None) -> Prediction:
    """What the missing stages of a plan will take.

    Args:
        plan: what to do.
        store: its manifests are the measurements.
        resources: of a stage.
        gpus: how many there are; on a CPU, how many stages run at a time.
        machine: part of the name of the device whose measurements count, case aside; `cpu`: any processor; None: all.

    Raises:
        UserError: the store has no measurement on such a machine, or a stage takes more than there is.
    """
    manifests = [each for kind in KINDS for each in store.manifests(kind) if _is_on(each["device"], machine)]
    if machine and not manifests and machine.lower() not in PAPERS:
        devices = sorted({each["device"] for kind in KINDS for each in store.manifests(kind)})
        raise UserError(
            f"--machine {machine}: no stage in {store.root} was measured on it; measured were: "
            f"{', '.join(devices) or 'none'}; and for {', '.join(PAPERS)} there are the paper's times"
        )
    is_cpu = _is_cpu(machine)
    each = 1.0 if is_cpu else resources.workers * (resources.gpus or 1.0)
    slots = int(gpus / each)
    if slots < 1:
        raise UserError(f"--gpus {gpus}: a stage takes {each:g} of them; raise it, or lower resources")
    share: Callable[[Stage], float] = whole
    if not resources.grouped("defend") and is_cpu:
        share = side_by_side(resources.side_by_side)
    elif not resources.grouped("defend") and resources.gpus is None:
        share = memory.Peaks(manifests).share
    overhead = _overhead(store)
    one_evaluates = not resources.grouped("evaluate")
    costs = Costs(samples_of(manifests), paper=not is_cpu)
    timer = _Timer(costs, _there(plan, store), max(1.0, each), one_evaluates, overhead.stage)
    forecast = simulate(plan, slots, timer.seconds, share)
    return Prediction(
        wall=overhead.around + (overhead.start if plan.missing else 0.0) + forecast.wall,
        busy=forecast.busy,
        slots=slots,
        basis={found: number for found in BASES if (number := timer.stages_by(found))},
        left_out=tuple(sorted(timer.left_out)),
        sharing=not is_cpu and any(share(stage) < 1 for stage in plan.missing),
        overhead=overhead,
    )


def _is_cpu(machine: str | None) -> bool:
    return machine is not None and machine.lower() == CPU


def _is_on(device: str, machine: str | None) -> bool:
    return device.endswith("threads)") if _is_cpu(machine) else (machine or "").lower() in device.lower()


def _there(plan: Plan, store: Store) -> set[str]:
    """Return the keys of artifacts that the store has of stages that the plan misses."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for stage in plan.missing:
        wanted[stage.kind].update(stage.artifacts)
    return set().union(*(store.complete(kind, keys) for kind, keys in wanted.items()))


class _Timer:
    """Seconds of stages in the order in which they start; what an earlier one measured, a later one need not."""

    def __init__(
        self,
        costs: Costs,
        there: set[str],
        gpus: float,
        one_evaluates: bool,
        overhead: float,
        cores: float | None = None,
        share: Callable[[Stage], float] = whole,
    ) -> None:
        self.parts: dict[tuple[Kind, str], list[float]] = defaultdict(list)  # seconds of stages by kind and basis
        self.untimed: set[str] = set()  # models
        self.unknown: set[str] = set()  # data sets
        self._costs = costs
        self._gpus = gpus  # of a stage
        self._one_evaluates = one_evaluates  # of its workers
        self._overhead = overhead
        self._cores = cores  # of a slot
        self._share = share
        self._done = there  # keys of artifacts that need no time

    @property
    def left_out(self) -> set[str]:
        """Models and data sets that have no times."""
        return self.untimed | self.unknown

    def stages_by(self, found: str) -> int:
        """Return how many stages rest on one of BASES."""
        return sum(len(seconds) for (_, basis), seconds in self.parts.items() if basis == found)

    def seconds(self, stage: Stage) -> float:
        """Return how long a stage takes that starts now."""
        cell, total, bases = stage.cell, self._overhead, set()
        share = self._share(stage) if self._cores else 1.0
        for piece in pieces(stage, cell):
            if piece.key in self._done:
                continue
            self._done.add(piece.key)
            known = self._costs.seconds(piece, cell.model, self._cores, share)
            if known is None and math.isinf(piece.work):
                self.unknown.add(piece.data)
            elif known is None:
                self.untimed.add(cell.model)
            else:
                seconds, found = known
                alone = 1.0 if self._one_evaluates and stage.kind == "evaluate" else piece.alone
                # The paper's are those of one GPU.
                total += seconds * (alone + (1 - alone) / self._gpus) if found == PAPER else seconds
                bases.add(found)
        if bases:
            self.parts[stage.kind, max(bases, key=BASES.index)].append(total)
        return total


def here(plan: Plan, store: Store, resources: Resources) -> Here:
    """Return what the missing stages of a plan will take on this machine's CPU; imports neither torch nor Ray.

    Args:
        plan: what to do.
        store: its manifests are the own timings, and its last run has the overhead.
        resources: of a stage.
    """
    compute_type, cores = expected_type(), _cores()
    timings, noted_overhead = shipped(compute_type), noted(store)
    overhead = noted_overhead or timings.overhead
    workers = resources.workers
    each = min(cores, (resources.cpus or max(1, cores // workers)) * workers)
    slots = cores // each
    share = whole if resources.grouped("defend") else side_by_side(resources.side_by_side)
    own = on_cpu(store, compute_type) if plan.missing else ()
    costs = Costs(own, timings.samples)
    timer = _Timer(costs, _there(plan, store), 1.0, True, overhead.stage, each, share)
    by_stage: dict[str, float] = {}

    def seconds(stage: Stage) -> float:
        by_stage[stage.key] = timer.seconds(stage)
        return by_stage[stage.key]

    forecast = simulate(plan, slots, seconds, share)
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
        at_once=slots * (1 if resources.grouped("defend") else resources.side_by_side),
        overhead=overhead,
        overhead_is_own=noted_overhead is not None,
    )


def trainings_here(stages: Iterable[Stage], store: Store) -> str:
    """Return about how long stages take on this machine's CPU one after the other, in words; else their GPU-hours."""
    stages = list(stages)
    compute_type = expected_type()
    costs = Costs(on_cpu(store, compute_type), shipped(compute_type).samples)
    known = [
        costs.seconds(piece, stage.cell.model, _cores()) for stage in stages for piece in pieces(stage, stage.cell)
    ]
    if None in known:
        return told(sum(estimate(stages).seconds.values()))
    return about(sum(each[0] for each in known if each))


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def here_sentence(made: Here) -> str:
    """Return the seconds of `here` in a sentence, with the models and data that are not in them."""
    if not made.stages:
        return "Nothing is left to run."
    said = []
    if made.parts or not (made.untimed or made.unknown):
        cores = f"{made.cores} core{'s' if made.cores > 1 else ''}"
        by = f", by {made.source}" if made.parts else ""
        said.append(f"About {about(made.seconds)} on this machine ({cores}, {made.compute_type}){by}")
    if made.untimed:
        paper = (
            f"{told(made.gpu_seconds)} on H800 cards by the paper's times"
            if made.gpu_seconds
            else "how long it takes is not known"
        )
        names, were = _and(made.untimed), "were" if len(made.untimed) > 1 else "was"
        said.append(f"{names} {were} never timed on a CPU: {paper}")
    if made.unknown:
        said.append(f"not counted: work on {_and(made.unknown)}, whose size is not known")
    return "; ".join(said)


def here_reasons(made: Here) -> list[str]:
    """Return where the seconds of `here` come from, in paragraphs."""
    said = [
        f"{part.stages} {part.kind}, {about(part.seconds)} one after the other: {part.basis}" for part in made.parts
    ]
    if made.parts:
        once, each = made.overhead.around + made.overhead.start, made.overhead.stage
        whose = "the last run on this store" if made.overhead_is_own else "shipped timings"
        said += [
            f"{about(once)} for plan, Ray and report, and {each:.1f} s a stage, are in it: {whose}",
            f"defenses and evaluations run {made.at_once} at a time" if made.at_once > 1 else "one stage at a time",
            "A stage takes time in proportion to its work, from the timing that is nearest in data and size.",
        ]
        if any(part.basis in (SHIPPED, SHIPPED_OTHER) for part in made.parts):
            said.append(
                f"Shipped timings are of {CORES} cores. On fewer cores a stage takes longer in proportion; "
                "on more it is taken to be as fast."
            )
    if made.gpu_seconds:
        said.append(f"GPU-hours: {basis()}")
    return said


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def about(seconds: float) -> str:
    """Return seconds, minutes or hours, rounded as an estimate deserves."""
    if seconds < 10:
        return f"{seconds:.1g} s"
    if seconds < 95:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 95 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 9.95 * HOUR else f"{seconds / HOUR:.0f} h"


def sentence(plan: Plan, store: Store, resources: Resources, gpus: int, machine: str | None) -> tuple[str, str]:
    """Return the prediction of `predict` and what it rests on, in words; arguments and errors are the same."""
    made = predict(plan, store, resources, gpus, machine)
    if not plan.missing:
        return f"Forecast: {_span(made.wall)}, as nothing is left to run", ""
    unknown = f"{', '.join(made.left_out)} (never measured{f' on {machine}' if machine else ''}, or of unknown size)"
    if not made.basis:
        return f"Forecast: none without times for {unknown}", ""
    is_cpu = _is_cpu(machine)
    place = f"with {gpus} stages at a time" if is_cpu else f"on {gpus} GPUs" if gpus > 1 else "on one GPU"
    work = _span(made.busy) if is_cpu else told(made.busy * gpus / made.slots)
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
        "stages that share a GPU are taken to be as fast as alone" if made.sharing else "",
        f"beside them {once:.0f} s, and {each:.1f} s a stage, {source}",
    ]
    return f"Forecast: {'; '.join(filter(None, notes))}"


def _span(seconds: float) -> str:
    """Seconds, minutes or hours, with two digits or more."""
    for unit, size in (("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def note(store: Store, **seconds: float) -> None:
    """Keep some of the overhead that a run on this store had, for predictions of the next one; not on a full disk."""
    values = dataclasses.asdict(_overhead(store)) | {name: round(value, 3) for name, value in seconds.items()}
    with suppress(UserError):
        write_atomically(store.root / _FILE, json.dumps(values))


def noted(store: Store) -> Overhead | None:
    """Return the overhead of the store's last run; None where there was none, or one of another version."""
    try:
        return Overhead(**json.loads((store.root / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _overhead(store: Store) -> Overhead:
    """Return that of the store's last run, else that of a run elsewhere."""
    return noted(store) or OVERHEAD
