"""Intervals of reported numbers, in percent, and tests of paired outcomes."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
RESAMPLES = 2000  # of a bootstrap; 50 of them lie below its 2.5 % point


def wilson(successes: float, count: float) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a share, in percent; it has a width at 0 and 100, unlike the normal one.

    Newcombe 1998, method 3. `scipy.stats.binomtest` gives the same, but takes a hundred times as long for a p-value.
    """
    share, z = successes / count, _normal_quantile()
    denominator = 2 * (count + z**2)
    center = (2 * count * share + z**2) / denominator
    half = z / denominator * math.sqrt(4 * count * share * (1 - share) + z**2)
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == count else center + half
    return 100 * low, 100 * high


@functools.cache
def _normal_quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + CONFIDENCE) / 2))


def mean_interval(mean: float, deviation: float, count: float) -> tuple[float, float]:
    """Return the Student-t 95 % interval of the mean of outcomes from 0 to 1, in percent, clipped to 0 to 100.

    Args:
        mean: of the outcomes, 0 to 1.
        deviation: their sample standard deviation (divided by count - 1), on the same scale.
        count: of outcomes; a single one gives the widest interval, 0 to 100.
    """
    if count < 2:
        return 0.0, 100.0
    return _clipped(100 * mean, _student(100 * deviation, count))


def over_seeds(values: Sequence[float], lowest: float = 0.0) -> tuple[float, float]:
    """Return the Student-t 95 % interval of the mean of percentages over seeds, clipped to `lowest` to 100.

    Args:
        values: one percentage a seed, at least two.
        lowest: smallest possible value; -100 for differences of percentages.
    """
    return _clipped(statistics.fmean(values), _student(statistics.stdev(values), len(values)), lowest)


def of_sum(parts: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Return how far the 95 % interval of a weighted sum of independent numbers reaches below and above it.

    Zou and Donner 2008 (MOVER): add up the squared distances of the parts' bounds. For a difference of two shares, this
    is Newcombe's hybrid of Wilson intervals (1998, method 10), which also has a width at 0 and 100 %.

    Args:
        parts: weight, value, lower and upper bound of each.

    Returns:
        Distances of the bounds from the sum, neither negative.
    """
    below = above = 0.0
    for weight, value, low, high in parts:
        down, up = (value - low, high - value) if weight > 0 else (high - value, value - low)
        below, above = below + (weight * down) ** 2, above + (weight * up) ** 2
    return math.sqrt(below), math.sqrt(above)


def _student(deviation: float, count: float) -> float:
    """Return half the width of the Student-t interval of a mean."""
    return _student_quantile(count - 1) * deviation / math.sqrt(count)


@functools.cache
def _student_quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def _clipped(mean: float, half: float, lowest: float = 0.0) -> tuple[float, float]:
    return max(lowest, mean - half), min(100.0, mean + half)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the two-sided p-value of McNemar's exact test that two models are equally often right.

    Only questions on which the models differ count. Under the null hypothesis, their split is binomial with 1/2.
    Without any, p is 1.

    Args:
        first: right or wrong, question by question.
        second: the same of the other model, in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy.stats import binomtest

    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def paired_bootstrap(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap 95 % interval (percentile) of mean(second) - mean(first), in percentage points.

    Questions are drawn with replacement, each with both of its outcomes, so what makes a question easy or hard for
    both models cancels out.

    Args:
        first: outcomes from 0 to 1, question by question; a single one gives the widest interval, -100 to 100.
        second: the same of the other model, in the same order.
        seed: decides the resampling.

    Raises:
        ValueError: the lengths differ.
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"{len(first)} outcomes cannot be paired with {len(second)}")
    count = len(first)
    if count < 2:
        return -100.0, 100.0
    differences, times = np.unique(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), return_counts=True)
    # How often a resample draws each difference is multinomial; drawing that instead of every question takes
    # milliseconds for all of MMLU, where scipy.stats.bootstrap takes a second.
    drawn = np.random.default_rng(seed).multinomial(count, times / count, size=RESAMPLES)
    low, high = np.percentile(100 * drawn @ differences / count, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995), in the given order.

    If those up to q count as significant, the expected share of false ones among them is at most q.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values, method="bh")] if len(p_values) else []
