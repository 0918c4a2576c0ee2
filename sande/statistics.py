"""Intervals of reported numbers, in percent, and tests over units."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000  # of a bootstrap; 50 of them lie below its 2.5 % point
EXACT = 50  # units up to which bounds are computed exactly, in milliseconds; the time grows with the square


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


def of_one_model(mean: float, count: float, deviation: float = 0.0) -> tuple[float, float]:
    """Return the 95 % interval of one model's number, in percent.

    Args:
        mean: of its outcomes, from 0 to 1.
        count: of the outcomes; of those in clusters `sande.clusters.effective_count`.
        deviation: standard deviation of numbers; 0 for a share, and for equal numbers, which show no spread.
    """
    return mean_interval(mean, deviation, count) if deviation else wilson(mean * count, count)


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
    return _clipped(statistics.fmean(values), _student(_deviation(values), len(values)), lowest)


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


def _deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; `statistics.stdev`, which is exact, takes milliseconds for many values."""
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _student(deviation: float, count: float) -> float:
    """Return half the width of the Student-t interval of a mean."""
    return _student_quantile(count - 1) * deviation / math.sqrt(count)


@functools.cache
def _student_quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def _clipped(mean: float, half: float, lowest: float = 0.0) -> tuple[float, float]:
    return max(lowest, mean - half), min(100.0, mean + half)


def share_unseen(count: float, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound, in percent, of a share that `count` independent trials did not show (Clopper, Pearson).

    Both sides of an interval have an equal part of what is left of the confidence: 1.8 % of 200 trials.
    """
    return 100 * (1 - math.pow((1 - confidence) / 2, 1 / count))


def mean_bounds(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Return the 95 % interval of the mean that independent units between `low` and `high` are drawn from.

    Gaffke's bound (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
    nonnegative variable"; Learned-Miller and Thomas 2019, arXiv:1905.06208): add one unit at the end of the range,
    weight all by a uniform Dirichlet vector, take the quantile of the weighted mean. Each side has 2.5 %. It assumes
    nothing about the shape of the distribution, so it also holds where a removal either works or fails. For zeros and
    ones it is Clopper and Pearson's interval; three zeros have 0 to 0.708, five 0 to 0.522.

    The quantiles are exact for up to 50 units, and of 2,000 fixed draws for more. That the bound holds for every
    distribution is a conjecture in these papers; it holds in the simulations of `docs/statistics.md`.

    Args:
        values: one for each unit. A unit of a table is an attack seed: the mean over its defense seeds and prompts, in
            which the spread between defense seeds is averaged as far as it should be. This is conservative: the added
            unit weighs as much as a whole attack seed, so more defense seeds alone narrow the interval little, even
            where all of the spread comes from them.
        low: start of the range. Values outside the range by a rounding error count as its end.
        high: end of the range.

    Raises:
        ValueError: there is no value, or one is outside the range.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    slack = 1e-9 * (high - low)
    if not all(low - slack <= value <= high + slack for value in values):
        raise ValueError(f"values from {min(values)} to {max(values)} are outside {low} to {high}")
    return _gaffke(tuple(sorted(min(max(value, low), high) for value in values)), low, high)


@functools.lru_cache(maxsize=16_384)
def _gaffke(values: tuple[float, ...], low: float, high: float) -> tuple[float, float]:
    import numpy as np
    from scipy.optimize import brentq

    tail = (1 - CONFIDENCE) / 2

    def bound(points: tuple[float, ...], above: float) -> float:
        if points[0] == points[-1]:
            return points[0]
        if len(values) > EXACT:
            return float(np.quantile(_draws(len(points)) @ points, 1 - above))
        return float(brentq(lambda x: _dirichlet_above(points, x) - above, points[0], points[-1], xtol=1e-12))

    return bound((low, *values), 1 - tail), bound((*values, high), tail)


@functools.lru_cache(maxsize=4)
def _draws(points: int) -> NDArray[np.float64]:
    """Return fixed Dirichlet weights of shape (RESAMPLES, points)."""
    import numpy as np

    return np.random.default_rng(0).dirichlet(np.ones(points), size=RESAMPLES)


def _dirichlet_above(points: Sequence[float], limit: float) -> float:
    """Return the probability that a mean of ascending points with uniform Dirichlet weights is above a limit.

    It is the divided difference of (z - limit)_+^n over the n + 1 points (Curry and Schoenberg 1966). De Boor's
    recursion evaluates it by convex combinations, without cancellation, in n^2 / 2 steps.
    """
    above = [float(point > limit) for point in points]
    for width in range(1, len(points)):
        above = [
            ((right - limit) * after + (limit - left) * before) / (right - left)
            if left <= limit < right
            else float(left > limit)  # all points are on one side, and so is every mean of them
            for left, right, before, after in zip(points, points[width:], above, above[1:], strict=False)
        ]
    return above[0]


def share_above(units: Sequence[Sequence[float]], limit: float) -> tuple[float, float, float]:
    """Return the share of runs above a limit and its 95 % interval, each from 0 to 1: how often a removal fails.

    Attack seeds are the units: each counts with the share of its runs that are above, so five attack seeds with two
    defense seeds each are five units, not ten.

    Args:
        units: the values of the runs of each attack seed: one for each defense seed.
        limit: in the values' unit, for example 5 for an ASR of 5 %.

    Raises:
        ValueError: there is no unit, or one without a run.
    """
    if not all(len(runs) for runs in units):
        raise ValueError("an attack seed without a run has no share; leave it out")
    shares = [sum(run > limit for run in runs) / len(runs) for runs in units]
    low, high = mean_bounds(shares)
    return statistics.fmean(shares), low, high


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value that two methods are the same, from their values on the same attack seeds.

    Student's paired test over attack seeds, and never less than 2 / 4^n. Two runs of the same method on one victim are
    drawn from the same distribution, so their difference takes a value c other than 0 with a probability of at most
    1/4, and n equal differences happen with 2 / 4^n (both signs); Student's test alone would give p = 0 for them. So
    two seeds can never be significant, and three can (0.031). Differences of two draws are symmetric about 0, for which
    Student's test is conservative or close to its level (Efron 1969).

    Calibrated by simulation for a removal that works or fails, see `docs/statistics.md`. It asks whether two methods
    differ at all: a method at 19 % in each run differs from one that leaves 95 % in every fifth run, although both have
    the same mean. For how large a mean may be, see `mean_bounds`.

    Args:
        first: one value for each attack seed: the mean over its defense seeds.
        second: the same of the other method, in the same order.

    Raises:
        ValueError: the lengths differ.
    """
    differences = [other - one for one, other in zip(first, second, strict=True)]
    count = len(differences)
    if count < 2 or not any(differences):
        return 1.0
    above = _student_tail(differences, 0.0)
    return max(2 * min(above, 1 - above), 2 * 0.25**count)


def equivalent(differences: Sequence[float], margin: float, reach: float | None = None) -> float:
    """Return the p-value of two one-sided tests that a mean difference lies within -margin to margin (Schuirmann 1987).

    Args:
        differences: of each independent unit: of an attack seed, or of a prompt for statements on one pair of models.
        margin: above 0, in the unit of the differences.
        reach: the largest possible size of a difference. With it, the tests hold for any distribution (`mean_bounds`),
            as is needed for ASR, where a few good runs say little about rare bad ones; it takes many units. None:
            Student's tests, for utility, which varies little from seed to seed.
    """
    turned = [-difference for difference in differences]
    return max(non_inferior(differences, margin, reach), non_inferior(turned, margin, reach))


def non_inferior(differences: Sequence[float], margin: float, reach: float | None = None) -> float:
    """Return the one-sided p-value that a mean difference is above -margin; arguments are those of `equivalent`.

    Args:
        differences: method minus reference, where higher is better.
        margin: the largest loss that counts as none.
        reach: as for `equivalent`. Without it, p is never less than 1 / 4^n, as in `paired_p`, and one unit has 1.
    """
    if reach is not None:
        return 1 - _dirichlet_above((-reach, *sorted(differences)), -margin)
    count = len(differences)
    return max(_student_tail(differences, -margin), 0.25**count) if count > 1 else 1.0


def _student_tail(values: Sequence[float], center: float) -> float:
    """Return Student's one-sided p-value of a mean above `center`, of at least two values."""
    from scipy.special import stdtr

    distance = statistics.fmean(values) - center
    error = _deviation(values) / math.sqrt(len(values))
    if error == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stdtr(len(values) - 1, -distance / error))


def rank_intervals(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, int]]:
    """Return the first and the last rank of each method by its mean, with 95 % confidence for each method on its own.

    Rank 1 has the smallest mean.

    Bayesian bootstrap over units (Rubin 1981), shared by all methods, so that an easy attack seed favours none. As in
    `mean_bounds`, one more unit stands for the runs that nobody saw: each draw puts it at either end of the range for
    each method. Without it, five runs at 0 would leave no doubt. The draws are fixed. Coverage by simulation is in
    `docs/statistics.md`.

    Args:
        values: of each method, one for each unit, from 0 to 1, for the same units in the same order.

    Raises:
        ValueError: methods have different numbers of units, or none.
    """
    import numpy as np

    counts = sorted({len(units) for units in values.values()})
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"methods with {counts} units cannot be ranked; use the same units for all, at least one")
    if not values:
        return {}
    random = np.random.default_rng(0)
    seen = np.array([list(units) for units in values.values()], dtype=float)
    weights = random.dirichlet(np.ones(seen.shape[1] + 1), size=RESAMPLES)
    unseen = random.choice([0.0, 1.0], size=(RESAMPLES, len(seen)))
    means = np.round(weights[:, :-1] @ seen.T + weights[:, -1:] * unseen, 12)
    better = (means[:, None, :] < means[:, :, None]).sum(2)
    not_worse = (means[:, None, :] <= means[:, :, None]).sum(2)
    tail = 50 * (1 - CONFIDENCE)
    first = np.percentile(1 + better, tail, axis=0, method="lower")
    last = np.percentile(not_worse, 100 - tail, axis=0, method="higher")
    return {name: (int(a), int(b)) for name, a, b in zip(values, first, last, strict=True)}


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995), in the given order.

    If those up to q count as significant, the expected share of false ones among them is at most q.
    """
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values, method="bh")] if len(p_values) else []
