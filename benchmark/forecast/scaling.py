"""How much faster several workers are than one: as a store's own timings show, or by an assumption that is named."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from benchmark.forecast.timings import Sample

# Share of its speed that a worker keeps each time their number doubles. An assumption: nothing was measured on several
# GPUs. Data-parallel training of large batches comes near 1 (Li et al. 2020, arXiv 2006.15704, section 5); with the one
# or two rows a worker that the paper's batches leave, exchanging gradients costs a larger share.
EFFICIENCY = 0.9
NO_GAIN = 0.5  # twice as many workers take as long

# Seconds to start a worker group: 11 to 13 s with one worker, 13 to 14 s with two (two CPU cores, Ray 2.60).
GROUP_START = 13.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """Speed of several workers.

    Attributes:
        assumed: efficiency of each doubling where none was measured.
        measured: efficiency of each doubling in a store's timings, by sort of stages.
    """

    assumed: float = EFFICIENCY
    measured: Mapping[str, float] = field(default_factory=dict)

    def speedup(self, kind: str, workers: int) -> float:
        """Return how many times as fast as one worker several are."""
        return float(workers * self.measured.get(_sort(kind), self.assumed) ** math.log2(workers))

    def seconds(self, kind: str, alone: float, workers: int) -> float:
        """Return the time of work by several workers, as a part of the time of one.

        Args:
            kind: of the stage.
            alone: share of the work that each worker repeats.
            workers: that share the rest.
        """
        return alone + (1 - alone) / self.speedup(kind, workers)

    def __str__(self) -> str:
        head = "each doubling of workers keeps"
        if not self.measured:
            return f"{head} {self.assumed:.0%} of a worker's speed (assumed)"
        known = {sort: (self.measured[sort], "measured in this store") for sort in self.measured}
        shares = {sort: known.get(sort, (self.assumed, "assumed")) for sort in _SORTS}
        return f"{head} of a worker's speed " + ", ".join(
            f"{share:.0%} in {sort} ({how})" for sort, (share, how) in shares.items()
        )


_SORTS = ("trainings", "evaluations")


def _sort(kind: str) -> str:
    return "evaluations" if kind == "evaluate" else "trainings"


def scaling(samples: Iterable[Sample], assumed: float = EFFICIENCY) -> Scaling:
    """Return the scaling in timings on GPUs of the same work by different numbers of workers: the median over pairs."""
    alike: dict[tuple[str, str, str, str, float], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if not sample.threads:
            work = round(math.log(sample.work), 2)
            alike[sample.kind, sample.method, sample.model, sample.data, work][sample.workers].append(sample.seconds)
    found: dict[str, list[float]] = defaultdict(list)
    for (kind, *_), by_workers in alike.items():
        for (few, slow), (many, fast) in combinations(sorted(by_workers.items()), 2):
            kept = statistics.mean(slow) * few / (statistics.mean(fast) * many)
            found[_sort(kind)].append(kept ** (1 / math.log2(many / few)))
    return Scaling(assumed, {sort: min(1.0, max(NO_GAIN, statistics.median(each))) for sort, each in found.items()})
