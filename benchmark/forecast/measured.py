"""Predict the seconds of stages from timings of similar work, and keep the overhead of a run apart from its stages.

The prediction for a piece of work is the time of the most similar timed work, in proportion to its size
(`cost.pieces`). Timings count in this order:

1. the store's own of the same method on the same model, of the same data set;
2. shipped ones (`benchmark.forecast.timings`) of the same method on the same model, of the same data set;
3. as 1 and 2, of other data sets;
4. the store's own of other methods on that model;
5. shipped ones of other methods on that model;
6. the paper's times on H800 cards, for any GPU.

Shipped timings come before own ones of other methods and data, which cause a larger error than another machine of the
same kind: a row of DPO costs several of SFT, one of Alpaca several short ones, and methods decode differently. Shipped
timings are of CPUs, so a forecast for GPUs never uses them. A forecast for this machine's CPU never uses the paper's
times, but names the models that would need them.

On a CPU only timings count of CPUs with the compute type that this machine will use, see `sande.compute`. Manifests of
earlier versions record no type and count as before. A stage is slower in proportion where it gets fewer threads than
the timing had, and faster where it gets two and the timing had one. Shipped timings are of two cores, and the forecast
assumes that more cores make no stage faster, so on many cores it is an upper bound.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmark.forecast.cost import BILLIONS, Piece, measured, pieces
from benchmark.forecast.scaling import GROUP_START, Scaling
from benchmark.forecast.timings import CORES, Overhead, Sample
from benchmark.grid.cell import Cell
from benchmark.grid.resources import Kind
from benchmark.io.files import write_atomically
from benchmark.plan.memory import KINDS
from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage
from benchmark.store.manifest import OTHER_FORM
from benchmark.store.protocol import Store
from sande.compute import ComputeType
from sande.errors import UserError
from sande.permissions import share

CPU = "cpu"  # as a machine: any processor
_FILE = "overhead.json"
_THREADS = re.compile(r" \((\d+) threads\)$")  # at the end of a CPU's name
ENOUGH = 50  # measurements of a method on a model

# Bases of a prediction, from good to bad.
OWN, SHIPPED, OWN_OTHER, SHIPPED_OTHER, PAPER = BASES = (
    "own timings of the method on the model",
    "shipped timings of the method on the model",
    "own timings of other methods on the model",
    "shipped timings of other methods on the model",
    "the paper's times on H800 cards, as they are",
)

# `run grids/smoke.yaml` on two cores of an AMD EPYC, Ray 2.60, torch 2.13; little else ran at the time.
OVERHEAD = Overhead(around=7.4, start=9.0, stage=0.08)


class Costs:
    """Seconds of work, predicted from timings."""

    def __init__(
        self,
        own: Iterable[Sample],
        others: Iterable[Sample] = (),
        paper: bool = False,
        scaling: Scaling | None = None,
    ) -> None:
        """Keep timings, by method and model.

        Args:
            own: timings of the store.
            others: shipped timings.
            paper: whether to use the paper's times, of one GPU, for work that was never timed.
            scaling: speed of several workers; None: they are as fast as one, as on a CPU, whose cores they share.
        """
        self._own, self._shipped = _Samples(own), _Samples(others)
        self._paper = paper
        self._scaling = scaling
        self._known: dict[tuple[object, ...], tuple[float, str] | None] = {}

    def seconds(
        self, piece: Piece, model: str, cores: float | None = None, share: float = 1.0, workers: int = 1
    ) -> tuple[float, str] | None:
        """Return the seconds of a piece of work, and their basis, one of BASES; None where nothing is known.

        Args:
            piece: piece of a stage.
            model: model of the stage.
            cores: cores of the stage's slot; None: on a GPU, or as many as the timings had.
            share: the stage's share of the slot.
            workers: processes that share the work.
        """
        asked = piece.kind, piece.method, piece.data, piece.work, model, cores, share, workers
        if asked not in self._known:
            self._known[asked] = self._look_up(piece, model, cores, share, workers)
        return self._known[asked]

    def _look_up(
        self, piece: Piece, model: str, cores: float | None, share: float, workers: int
    ) -> tuple[float, str] | None:
        if math.isinf(piece.work):
            return None
        own = cores and cores * share
        shipped = cores and min(cores, CORES) * share
        method, any_method = (piece.kind, piece.method, model), (_pool(piece.kind), model)
        of_own, of_shipped = self._own.by_method[method], self._shipped.by_method[method]
        for alike, threads, found in (
            (_of_data(of_own, piece.data), own, OWN),
            (_of_data(of_shipped, piece.data), shipped, SHIPPED),
            (of_own, own, OWN),
            (of_shipped, shipped, SHIPPED),
            (self._own.by_model[any_method], own, OWN_OTHER),
            (self._shipped.by_model[any_method], shipped, SHIPPED_OTHER),
        ):
            if alike:
                return self._by_the_nearest(alike, piece, threads, workers), found
        if not self._paper or model not in BILLIONS:
            return None
        return piece.work * BILLIONS[model] * self._by_workers(piece, workers), PAPER

    def _by_the_nearest(self, samples: Sequence[Sample], piece: Piece, threads: float | None, workers: int) -> float:
        """Return seconds in proportion to those of the samples nearest in data and size, or to their mean.

        Of equally near ones those of as many threads and workers count; else those of others, by the scaling.
        """

        def distance(sample: Sample) -> tuple[bool, float, bool, bool]:
            ratio = piece.work / sample.work if piece.work else math.inf
            size = round(abs(math.log(ratio)), 6) if piece.work else 0.0
            other_workers = bool(self._scaling) and sample.workers != workers
            return sample.data != piece.data, size, other_workers, bool(threads) and sample.threads != threads

        least = min(map(distance, samples))
        nearest = [sample for sample in samples if distance(sample) == least]
        seconds = sum(
            sample.seconds
            * _slower(sample, threads)
            * self._by_workers(piece, workers)
            / self._by_workers(piece, sample.workers)
            for sample in nearest
        )
        return piece.work * seconds / sum(sample.work for sample in nearest)

    def _by_workers(self, piece: Piece, workers: int) -> float:
        return self._scaling.seconds(piece.kind, piece.alone, workers) if self._scaling else 1.0


class _Samples:
    """Samples by method and model, and by model alone."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.by_method: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        self.by_model: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for sample in samples:
            self.by_method[sample.kind, sample.method, sample.model].append(sample)
            self.by_model[_pool(sample.kind), sample.model].append(sample)


def _of_data(samples: Iterable[Sample], data: str) -> list[Sample]:
    return [sample for sample in samples if sample.data == data]


def _pool(kind: str) -> str:
    """Return the kind under which the timings of all methods count: a part trains as a defense does."""
    return "defend" if kind == "part" else kind


def _slower(sample: Sample, threads: float | None) -> float:
    """Return the factor by which a sample's work is slower in `threads` threads; more than two make it no faster."""
    if not threads or not sample.threads:
        return 1.0
    return sample.threads / min(threads, max(CORES, sample.threads))


def samples_of(manifests: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Yield samples from manifests, at most ENOUGH of a method on a model.

    Work of size 0 or of unknown size is left out, and so are manifests of another form than this version's.
    """
    known: Counter[tuple[str, str, str]] = Counter()
    for manifest in manifests:
        with suppress(*OTHER_FORM):
            method, model = _method(manifest), str(manifest["settings"]["model"])
            if known[manifest["kind"], method, model] == ENOUGH:
                continue
            piece = _piece(manifest)
            if piece and 0 < piece.work < math.inf:
                threads = _THREADS.search(manifest["device"])
                number, seconds = int(threads[1]) if threads else 0, float(manifest["seconds"])
                workers = int(manifest.get("workers", 1))
                known[manifest["kind"], method, model] += 1
                yield Sample(piece.kind, method, model, piece.data, piece.work, seconds, number, workers)


def on_cpu(store: Store, compute_type: ComputeType) -> Iterator[Sample]:
    """Yield a store's timings of CPUs in this compute type, and those that record no type."""
    return samples_of(
        manifest
        for kind in KINDS
        for manifest in store.manifests(kind)
        if is_on(str(manifest.get("device", "")), CPU) and manifest.get("compute_type") in (None, compute_type)
    )


def _method(manifest: Mapping[str, Any]) -> str:
    """Return the name of the attack or defense, or the names of what the metric measured."""
    if manifest["kind"] == "evaluate":
        return " ".join(measurement["name"] for measurement in manifest["measurements"])
    name: str = manifest["settings"]["attack" if manifest["kind"] == "attack" else "defense"]["name"]
    return name


def _piece(manifest: Mapping[str, Any]) -> Piece | None:
    """Return the work that a manifest timed; None where its settings are not valid any more."""
    try:
        cell = Cell.parse(manifest["settings"])
    except UserError:
        return None
    keys = tuple(" ".join(measured(metric)) for metric in cell.metrics)
    stage = Stage(manifest["kind"], "", manifest["settings"], metric_keys=keys)
    return next((piece for piece in pieces(stage, cell) if piece.method == _method(manifest)), None)


def is_cpu(machine: str | None) -> bool:
    """Return whether `--machine` means any processor."""
    return machine is not None and machine.lower() == CPU


def is_on(device: str, machine: str | None) -> bool:
    """Return whether a device matches a name of `--machine`; None matches every device."""
    return device.endswith("threads)") if is_cpu(machine) else (machine or "").lower() in device.lower()


def present(plan: Plan, store: Store) -> set[str]:
    """Return the keys of those artifacts of missing stages that the store has."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for stage in plan.missing:
        wanted[stage.kind].update(stage.artifacts)
    return set().union(*(store.complete(kind, keys) for kind, keys in wanted.items()))


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """How a stage runs.

    Attributes:
        workers: processes that share its work.
        grouped: whether they are a worker group, which has to start.
        cores: cores of its slot on a CPU; None on a GPU.
        share: its share of the slot.
    """

    workers: int = 1
    grouped: bool = False
    cores: float | None = None
    share: float = 1.0


class Timer:
    """Seconds of stages, asked for in the order in which they start: a later one measures no outcome again."""

    def __init__(self, costs: Costs, there: Iterable[str], overhead: float, setup: Callable[[Stage], Setup]) -> None:
        """Start without any stage.

        Args:
            costs: seconds of work.
            there: keys of artifacts that take no time.
            overhead: seconds of each stage beside its own.
            setup: returns how a stage runs.
        """
        self.parts: dict[tuple[Kind, str], list[float]] = defaultdict(list)  # seconds of stages by kind and basis
        self.untimed: set[str] = set()  # models
        self.unknown: set[str] = set()  # data sets
        self._costs = costs
        self._overhead = overhead
        self._setup = setup
        self._done = set(there)

    @property
    def left_out(self) -> set[str]:
        """Return the models and data sets without times."""
        return self.untimed | self.unknown

    def stages_by(self, found: str) -> int:
        """Return the number of stages with one of BASES."""
        return sum(len(seconds) for (_, basis), seconds in self.parts.items() if basis == found)

    def seconds(self, stage: Stage) -> float:
        """Return the seconds of a stage that starts now."""
        cell, setup = stage.cell, self._setup(stage)
        total, bases = self._overhead + (GROUP_START if setup.grouped else 0.0), set()
        for piece in pieces(stage, cell):
            if piece.key in self._done:
                continue
            self._done.add(piece.key)
            known = self._costs.seconds(piece, cell.model, setup.cores, setup.share, setup.workers)
            if known is None and math.isinf(piece.work):
                self.unknown.add(piece.data)
            elif known is None:
                self.untimed.add(cell.model)
            else:
                total += known[0]
                bases.add(known[1])
        if bases:
            self.parts[stage.kind, max(bases, key=BASES.index)].append(total)
        return total


def keep_overhead(store: Store, **seconds: float) -> None:
    """Store the overhead of a run, for predictions of the next run; skip it where the store cannot be written."""
    values = dataclasses.asdict(overhead_of(store)) | {name: round(value, 3) for name, value in seconds.items()}
    with suppress(OSError, UserError):
        store.check_there()  # a file in the place of a removed store would hinder the next run
        write_atomically(store.root / _FILE, json.dumps(values))
        share(store.root / _FILE, store.root)


def noted(store: Store) -> Overhead | None:
    """Return the overhead of the store's last run; None where there was none, or one of another version."""
    try:
        return Overhead(**json.loads((store.root / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def overhead_of(store: Store) -> Overhead:
    """Return that of the store's last run, else that of a run elsewhere."""
    return noted(store) or OVERHEAD
