"""How long a grid will take on so many GPUs: a simulation of the scheduler with stages as long as they were measured.

What is to run takes what the most alike work in the store took, in proportion to its size (`estimate.pieces`): work of
the same method on the same model if there is any, else of other methods on that model, else what the paper's times on
H800 cards say, whatever card is asked for.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmark import memory
from benchmark.cell import Cell, Resources
from benchmark.estimate import BILLIONS, HOUR, Piece, measured, pieces
from benchmark.keeping import DROPPED
from benchmark.plan import Plan
from benchmark.schedule import side_by_side, simulate, whole
from benchmark.stages import Stage
from benchmark.store import Store, write_atomically
from sande.errors import UserError

KINDS = ("attack", "defend", "evaluate", DROPPED)
CPU = "cpu"  # as a machine: any processor
PAPERS = ("h800", "h100")  # machines for which the paper's times stand in where nothing was measured
_FILE = "overhead.json"
ENOUGH = 50  # measurements of a method on a model

# What a prediction goes by, from good to bad.
BASES = ("the same method and model", "other methods on the model", "the paper's times on H800 cards, as they are")


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a run takes beside its stages' own seconds.

    Attributes:
        around: seconds before Ray is started and after it has ended: the plan, rows and report.
        start: seconds from there until the first stage has ended, less its own: Ray, and a process with its imports.
        stage: seconds of a later stage, less its own: loading and saving a model, Tune.
    """

    around: float
    start: float
    stage: float


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
class _Sample:
    """Work that was measured."""

    piece: Piece
    seconds: float


class Costs:
    """Seconds that work takes, by what was measured."""

    def __init__(self, manifests: Iterable[Mapping[str, Any]], paper: bool) -> None:
        """From what stages wrote down.

        Args:
            manifests: of artifacts.
            paper: whether the paper's times stand in for what was never measured.
        """
        self._by_method: dict[tuple[str, str, str], list[_Sample]] = defaultdict(list)
        self._by_model: dict[tuple[str, str], list[_Sample]] = defaultdict(list)
        self._paper = paper
        for manifest in manifests:
            kind, model = manifest["kind"], manifest["settings"]["model"]
            known = self._by_method[kind, _method(manifest), model]
            piece = _piece(manifest) if len(known) < ENOUGH else None
            if piece and 0 < piece.work < math.inf:
                sample = _Sample(piece, manifest["seconds"])
                known.append(sample)
                self._by_model[kind, model].append(sample)

    def seconds(self, piece: Piece, model: str) -> tuple[float, str] | None:
        """Seconds of a piece of work, and which of BASES they rest on; None where nothing is known."""
        if math.isinf(piece.work):
            return None
        same_method, same_model, paper = BASES
        for basis, samples in (
            (same_method, self._by_method.get((piece.kind, piece.method, model))),
            (same_model, self._by_model.get((piece.kind, model))),
        ):
            if samples:
                return _by_the_nearest(samples, piece), basis
        return (piece.work * BILLIONS[model], paper) if self._paper and model in BILLIONS else None


def _by_the_nearest(samples: Sequence[_Sample], piece: Piece) -> float:
    """Seconds in proportion to those of the samples nearest in data and size; of several as near, to their mean."""

    def distance(sample: _Sample) -> tuple[bool, float]:
        ratio = piece.work / sample.piece.work if piece.work else math.inf
        return sample.piece.data != piece.data, round(abs(math.log(ratio)), 6) if piece.work else 0.0

    least = min(map(distance, samples))
    nearest = [sample for sample in samples if distance(sample) == least]
    return piece.work * sum(sample.seconds for sample in nearest) / sum(sample.piece.work for sample in nearest)


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
    on_cpu = _is_cpu(machine)
    each = 1.0 if on_cpu else resources.workers * (resources.gpus or 1.0)
    slots = int(gpus / each)
    if slots < 1:
        raise UserError(f"--gpus {gpus}: a stage takes {each:g} of them; raise it, or lower resources")
    share: Callable[[Stage], float] = whole
    if not resources.grouped("defend") and on_cpu:
        share = side_by_side(resources.side_by_side)
    elif not resources.grouped("defend") and resources.gpus is None:
        share = memory.Peaks(manifests).share
    overhead = _overhead(store)
    one_evaluates = not resources.grouped("evaluate")
    timer = _Timer(Costs(manifests, paper=not on_cpu), store, max(1.0, each), one_evaluates, overhead.stage)
    forecast = simulate(plan, slots, timer.seconds, share)
    return Prediction(
        wall=overhead.around + (overhead.start if plan.missing else 0.0) + forecast.wall,
        busy=forecast.busy,
        slots=slots,
        basis={basis: timer.basis[basis] for basis in BASES if timer.basis[basis]},
        left_out=tuple(sorted(timer.left_out)),
        sharing=not on_cpu and any(share(stage) < 1 for stage in plan.missing),
        overhead=overhead,
    )


def _is_cpu(machine: str | None) -> bool:
    return machine is not None and machine.lower() == CPU


def _is_on(device: str, machine: str | None) -> bool:
    return device.endswith("threads)") if _is_cpu(machine) else (machine or "").lower() in device.lower()


class _Timer:
    """Seconds of stages in the order in which they start; what an earlier one measured, a later one need not."""

    def __init__(self, costs: Costs, store: Store, gpus: float, one_evaluates: bool, overhead: float) -> None:
        self.basis: Counter[str] = Counter()
        self.left_out: set[str] = set()
        self._costs = costs
        self._store = store
        self._gpus = gpus  # of a stage
        self._one_evaluates = one_evaluates  # of its workers
        self._overhead = overhead
        self._done: set[str] = set()

    def seconds(self, stage: Stage) -> float:
        """How long a stage takes that starts now."""
        cell, total, bases = stage.cell, self._overhead, set()
        for piece in pieces(stage, cell):
            if piece.key in self._done or self._store.has(piece.kind, piece.key):
                continue
            self._done.add(piece.key)
            known = self._costs.seconds(piece, cell.model)
            if known is None:
                self.left_out.add(piece.data if math.isinf(piece.work) else cell.model)
                continue
            seconds, basis = known
            alone = 1.0 if self._one_evaluates and stage.kind == "evaluate" else piece.alone
            # The paper's are those of one GPU.
            total += seconds * (alone + (1 - alone) / self._gpus) if basis == BASES[-1] else seconds
            bases.add(basis)
        if bases:
            self.basis[max(bases, key=BASES.index)] += 1
        return total


def sentence(plan: Plan, store: Store, resources: Resources, gpus: int, machine: str | None) -> str:
    """The prediction of `predict`, and what it rests on, in two lines; arguments and errors are the same."""
    made = predict(plan, store, resources, gpus, machine)
    if not plan.missing:
        return f"Forecast: {_span(made.wall)}, as nothing is left to run"
    unknown = f"{', '.join(made.left_out)} (never measured{f' on {machine}' if machine else ''}, or of unknown size)"
    if not made.basis:
        return f"Forecast: none without times for {unknown}"
    on_cpu = _is_cpu(machine)
    place = f"with {gpus} stages at a time" if on_cpu else f"on {gpus} GPUs" if gpus > 1 else "on one GPU"
    work = _span(made.busy) if on_cpu else f"{made.busy * gpus / made.slots / HOUR:.3g} GPU-hours"
    once, each = made.overhead.around + made.overhead.start, made.overhead.stage
    source = "as measured on two CPU cores" if made.overhead is OVERHEAD else "as in the last run on this store"
    notes = [
        ", ".join(f"{count} stages by {basis}" for basis, count in made.basis.items()),
        f"without {unknown}" if made.left_out else "",
        "stages that share a GPU are taken to be as fast as alone" if made.sharing else "",
        f"beside them {once:.0f} s, and {each:.1f} s a stage, {source}",
    ]
    return (
        f"Forecast {place}{f' ({machine})' if machine else ''}: {_span(made.wall)} for {work} of work, "
        f"{made.busy / (made.slots * made.wall):.0%} in use\nBasis: {'; '.join(filter(None, notes))}"
    )


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


def _overhead(store: Store) -> Overhead:
    """That of the store's last run; of a store without one, or one of another version, that of a run elsewhere."""
    try:
        return Overhead(**json.loads((store.root / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return OVERHEAD
