"""Evidence that one of our numbers is equivalent to a reported one, or that it is different.

The unit of evidence is an attack seed: what holds for a method must hold for another victim, too. With one attack seed
and several defense seeds, the units are these, and the verdict is about that victim. With one run, the units are its
prompts or questions, and the verdict is about that model alone (`benchmark.records.runs`).

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
from functools import partial

from benchmark.records.runs import Basis
from sande import clusters, crossed, statistics

EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"
DRAWS = 2**14  # 819 of them lie beyond a bound of 95 %, whose level has a standard error of 0.2 %
_TAILS = (0.05, 0.025)  # probability beyond each bound of the inner and of the outer interval

_Lower = Callable[[Sequence[float], float], tuple[float, float]]  # of units and the least possible one


@dataclass(frozen=True, slots=True)
class Evidence:
    """Intervals of the mean of one of our numbers, in percent or percentage points.

    Attributes:
        units: number of units.
        basis: what it holds for: any attack seed ("seeds"), one victim, or one model.
        inner: 90 % interval.
        outer: 95 % interval.
    """

    units: int
    basis: Basis
    inner: tuple[float, float]
    outer: tuple[float, float]

    def verdict(self, reported: float, margin: float) -> str:
        """Return whether our mean is equivalent to a reported number, different from it, or undecided."""
        low, high = self.inner
        if reported - margin < low and high < reported + margin:
            return EQUIVALENT
        low, high = self.outer
        return DIFFERENT if high < reported - margin or reported + margin < low else UNDECIDED


def of_level(units: Sequence[float], basis: Basis, groups: Sequence[str] = ()) -> Evidence:
    """Return the evidence on a rate, which assumes nothing about how rates differ between units (Gaffke's bound).

    Args:
        units: percent, one for each seed, or for each prompt of one model.
        basis: what they stand for.
        groups: of each prompt, the name of those made from the same template, which count as `sande.clusters` says.
    """
    return _evidence(units, basis, 0.0, 100.0, _prompts(units, groups) if basis == "model" else _exact)


def of_change(units: Sequence[float], basis: Basis, groups: Sequence[str] = ()) -> Evidence:
    """Return the evidence on a change relative to the victim.

    Over seeds by Student's t, as `sande.statistics.equivalent` does for utility, which differs little from seed to
    seed; see `of_answers` where the answers are known. Over the questions of one model by Gaffke's bound: if no
    question changes, Student's t leaves no doubt at all.

    Args:
        units: percentage points, one for each seed, or for each question of one model.
        basis: what they stand for.
        groups: of each prompt, the name of those made from the same template, which count as `sande.clusters` says.
    """
    return _evidence(units, basis, -100.0, 100.0, _prompts(units, groups) if basis == "model" else _student)


def of_answers(answers: crossed.Answers, basis: Basis) -> Evidence:
    """Return the evidence on a change over several victims or runs, and over questions: both are samples.

    Args:
        answers: what changed, percentage points, of shape (units, questions); fewer than three units show nothing.
        basis: what the units stand for.
    """
    if len(answers.values) < 3:
        return Evidence(len(answers.values), basis, (-100.0, 100.0), (-100.0, 100.0))
    inner, outer = (crossed.interval([answers], 1 - 2 * tail) for tail in _TAILS)
    return Evidence(len(answers.values), basis, inner, outer)


def _evidence(units: Sequence[float], basis: Basis, least: float, most: float, lower: _Lower) -> Evidence:
    lows, highs = lower(units, least), lower([-unit for unit in units], -most)
    inner, outer = ((low, -high) for low, high in zip(lows, highs, strict=True))
    return Evidence(len(units), basis, inner, outer)


def _prompts(units: Sequence[float], groups: Sequence[str]) -> _Lower:
    """Return the bounds for prompts, each of which counts as so much of an independent one."""
    worth = clusters.effective_count(units, groups) / len(units) if any(groups) else 1.0
    return partial(_drawn, worth=worth)


def _exact(units: Sequence[float], least: float) -> tuple[float, float]:
    """Return the means at which `sande.statistics.non_inferior` has the p-values `_TAILS`: its tests' lower bounds."""
    from scipy.optimize import brentq

    most = max(units)
    if most == least:
        return least, least

    def bound(tail: float) -> float:
        return float(brentq(lambda mean: statistics.non_inferior(units, -mean, -least) - tail, least, most, xtol=1e-9))

    inner, outer = map(bound, _TAILS)
    return inner, outer


def _drawn(units: Sequence[float], least: float, worth: float = 1.0) -> tuple[float, float]:
    """Return the same bounds for thousands of units of a few different values, for which the exact ones take minutes.

    Of uniform Dirichlet weights, those of equal values add up to independent Gammas, whose shape is their number. Of
    two values that is a Beta distribution, and the bounds are those of Clopper and Pearson.

    Args:
        units: of a few different values.
        least: smallest value that a unit can have.
        worth: of a unit, as a share of an independent one.
    """
    import numpy as np
    from scipy.stats import beta

    counts = {value: worth * count for value, count in Counter(units).items()}
    counts[least] = counts.get(least, 0.0) + 1.0
    values = sorted(counts)
    if len(values) == 1:
        return least, least
    if len(values) == 2:
        low, high = values
        shares = beta.ppf(_TAILS, counts[high], counts[low])
        inner, outer = (low + (high - low) * float(share) for share in shares)
        return inner, outer
    drawn = np.random.default_rng(0).standard_gamma([counts[value] for value in values], size=(DRAWS, len(values)))
    inner, outer = map(float, np.quantile(drawn @ np.array(values) / drawn.sum(1), _TAILS))
    return inner, outer


def _student(units: Sequence[float], least: float) -> tuple[float, float]:
    """Return the lower bounds of Student's test; as in `sande.statistics.non_inferior`, of at least three units."""
    from scipy.stats import t

    count = len(units)
    mean = math.fsum(units) / count
    if count < 3:
        return least, least
    error = math.sqrt(math.fsum((unit - mean) ** 2 for unit in units) / (count - 1) / count)
    inner, outer = (mean - float(t.ppf(1 - tail, count - 1)) * error for tail in _TAILS)
    return inner, outer
