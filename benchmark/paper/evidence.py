"""Evidence that one of our numbers is equivalent to a reported one, or that it is different.

The unit of evidence is an attack seed: what holds for a method must hold for another victim, too. With one seed the
units are its prompts or questions, and the verdict is about that model alone.

    equivalent   our mean is within a margin of the reported number: two one-sided tests reject the rest at 5 % (TOST,
                 Schuirmann 1987), so the 90 % interval lies within the margin
    different    our mean is outside the margin: the 95 % interval lies beyond it, on one side
    undecided    neither; a wide interval is always undecided

The reported number counts as exact, since the paper gives single runs without intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sande import statistics

EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"
DRAWS = 2**16  # 3,277 of them lie beyond a bound of 95 %, whose level has a standard error of 0.1 %
_TOST, _TWO_SIDED = 0.05, 0.025  # probability beyond each bound

_Lower = Callable[[Sequence[float], float], float]  # of units and the probability below the bound


@dataclass(frozen=True, slots=True)
class Evidence:
    """Intervals of the mean of one of our numbers, in percent or percentage points.

    Attributes:
        units: number of units.
        seeds: True if the units are attack seeds, False if they are the prompts of one model.
        inner: 90 % interval.
        outer: 95 % interval.
    """

    units: int
    seeds: bool
    inner: tuple[float, float]
    outer: tuple[float, float]

    def verdict(self, reported: float, margin: float) -> str:
        """Return whether our mean is equivalent to a reported number, different from it, or undecided."""
        low, high = self.inner
        if reported - margin < low and high < reported + margin:
            return EQUIVALENT
        low, high = self.outer
        return DIFFERENT if high < reported - margin or reported + margin < low else UNDECIDED


def of_level(units: Sequence[float], *, seeds: bool) -> Evidence:
    """Return the evidence on a rate, which assumes nothing about how rates differ between units (Gaffke's bound).

    Args:
        units: percent, one for each attack seed, or 0 to 100 for each prompt of one model.
        seeds: True for attack seeds.
    """
    return _evidence(units, 0.0, 100.0, _exact if seeds else _drawn, seeds=seeds)


def of_change(units: Sequence[float], *, seeds: bool) -> Evidence:
    """Return the evidence on a change relative to the victim.

    Over seeds by Student's t, as `sande.statistics.equivalent` does for utility, which differs little from seed to
    seed. Over the questions of one model by Gaffke's bound: if no question changes, Student's t leaves no doubt at all.

    Args:
        units: percentage points, one for each attack seed, or -100 to 100 for each question of one model.
        seeds: True for attack seeds.
    """
    return _evidence(
        units, -100.0, 100.0, (lambda some, tail, _: _student(some, tail)) if seeds else _drawn, seeds=seeds
    )


def _evidence(
    units: Sequence[float],
    low: float,
    high: float,
    lower: Callable[[Sequence[float], float, float], float],
    *,
    seeds: bool,
) -> Evidence:
    negated = [-unit for unit in units]
    inner, outer = ((lower(units, tail, low), -lower(negated, tail, -high)) for tail in (_TOST, _TWO_SIDED))
    return Evidence(len(units), seeds, inner, outer)


def _exact(units: Sequence[float], tail: float, least: float) -> float:
    """Return the mean at which `sande.statistics.non_inferior` has the p-value `tail`: the lower bound of its test."""
    from scipy.optimize import brentq

    most = max(units)
    if most == least:
        return least
    return float(brentq(lambda mean: statistics.non_inferior(units, -mean, -least) - tail, least, most, xtol=1e-9))


def _drawn(units: Sequence[float], tail: float, least: float) -> float:
    """Return the same bound for thousands of units of a few different values, for which the exact one takes minutes.

    Of uniform Dirichlet weights, those of equal values add up to independent Gammas, whose shape is their number.
    """
    import numpy as np

    counts = Counter([least, *units])
    drawn = np.random.default_rng(0).standard_gamma(list(counts.values()), size=(DRAWS, len(counts)))
    return float(np.quantile(drawn @ np.array(list(counts)) / drawn.sum(1), tail))


def _student(units: Sequence[float], tail: float) -> float:
    """Return the lower bound of Student's test; like `sande.statistics.non_inferior`, it takes at least three units."""
    from scipy.stats import t

    count = len(units)
    if count < 2 or 1 / 4**count > tail:
        return -math.inf
    mean = math.fsum(units) / count
    error = math.sqrt(math.fsum((unit - mean) ** 2 for unit in units) / (count - 1) / count)
    return float(mean - t.ppf(1 - tail, count - 1) * error)
