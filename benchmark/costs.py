"""Seconds that stages take, by the most alike work that was timed; and the overhead of a run apart from its stages.

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
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmark.cell import Cell, Kind
from benchmark.estimate import BILLIONS, Piece, measured, pieces
from benchmark.files import write_atomically
from benchmark.keeping import DROPPED
from benchmark.plan import Plan
from benchmark.schedule import whole
from benchmark.stages import Stage
from benchmark.store_protocol import Store
from benchmark.timings import CORES, Overhead, Sample
from sande.compute import ComputeType
from sande.errors import UserError

KINDS = ("attack", "defend", "evaluate", DROPPED)
CPU = "cpu"  # as a machine: any processor
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
        if is_on(manifest.get("device", ""), CPU) and manifest.get("compute_type") in (None, compute_type)
    )


def _method(manifest: Mapping[str, Any]) -> str:
    """Return the name of the attack or defense, or the names of what the metric measured."""
    if manifest["kind"] == "evaluate":
        return " ".join(measurement["name"] for measurement in manifest["measurements"])
    name: str = manifest["settings"]["attack" if manifest["kind"] == "attack" else "defense"]["name"]
    return name


def _piece(manifest: Mapping[str, Any]) -> Piece | None:
    """Return the work that a manifest timed; None where its settings are no longer valid."""
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
    """Return whether a device is such a machine, as `--machine` names it; every device is one of None."""
    return device.endswith("threads)") if is_cpu(machine) else (machine or "").lower() in device.lower()


def present(plan: Plan, store: Store) -> set[str]:
    """Return the keys of artifacts that the store has of stages that the plan misses."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for stage in plan.missing:
        wanted[stage.kind].update(stage.artifacts)
    return set().union(*(store.complete(kind, keys) for kind, keys in wanted.items()))


class Timer:
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


def note(store: Store, **seconds: float) -> None:
    """Keep some of the overhead that a run on this store had, for predictions of the next one; not on a full disk."""
    values = dataclasses.asdict(overhead_of(store)) | {name: round(value, 3) for name, value in seconds.items()}
    with suppress(UserError):
        write_atomically(store.root / _FILE, json.dumps(values))


def noted(store: Store) -> Overhead | None:
    """Return the overhead of the store's last run; None where there was none, or one of another version."""
    try:
        return Overhead(**json.loads((store.root / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def overhead_of(store: Store) -> Overhead:
    """Return that of the store's last run, else that of a run elsewhere."""
    return noted(store) or OVERHEAD
