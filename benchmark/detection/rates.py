"""How well a detector's scores tell victims from twins, with intervals that hold for a handful of models.

The unit is a model. Intervals are of 95 %; `tests/benchmark/detection/test_rates.py` simulates their coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sande.statistics import CONFIDENCE, wilson

_ROUNDING = 1e-9  # 0.29 * 100 is below 29


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(victims: Sequence[float], twins: Sequence[float]) -> Estimate | None:
    """Return the probability that a victim scores higher than a twin, 0 to 1; ties count half.

    The variance is at most A (1 - A) / min(victims, twins) for any two distributions (Birnbaum and Klose 1957), and
    the interval is Wilson's for that many trials. A detector that misses one kind of victim reaches that variance. A
    few victims often hold none of that kind; the intervals of DeLong and of the bootstrap then have no width.

    Returns:
        The estimate; None without victims or without twins.
    """
    from scipy.stats import mannwhitneyu

    if not victims or not twins:
        return None
    wins = float(mannwhitneyu(victims, twins).statistic)
    fewest = min(len(victims), len(twins))
    value = wins / (len(victims) * len(twins))
    low, high = wilson(value * fewest, fewest)
    return Estimate(value, low / 100, high / 100)


def rate(alarms: int, models: int) -> Estimate | None:
    """Return a share of models in percent, with the interval of Clopper and Pearson; None without models."""
    from scipy.stats import binomtest

    if not models:
        return None
    interval = binomtest(alarms, models).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(100 * alarms / models, 100 * float(interval.low), 100 * float(interval.high))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold that bounds the rate of false alarms.

    Attributes:
        models: number of calibration models.
        rank: the threshold is the score of this rank among them, from the highest; 0 if there are too few of them.
        threshold: a higher score is an alarm; None if there are too few models.
        bound: the rate of false alarms that the rule guarantees on average over draws of the models, 0 to 1; without a
            threshold, the lowest that this number of models can guarantee.
        worst: upper limit, with 95 % confidence, of the rate with these very models; None without a threshold.
        needed: the smallest number of models that attains the wanted rate.
    """

    models: int
    rank: int
    threshold: float | None
    bound: float
    worst: float | None
    needed: int


def calibrate(scores: Sequence[float], false_alarms: float) -> Calibration:
    """Return the smallest threshold with `p_value` at most `false_alarms` above it (split conformal prediction).

    With m clean models, a further one of the same kind exceeds the k-th highest of their scores with a probability of
    at most k / (m + 1), so k is the largest with k / (m + 1) <= `false_alarms`. Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World (2005). Given the models, the rate has the distribution Beta(k, m + 1 - k) if scores do
    not tie (Vovk 2012), and a smaller one else.

    Args:
        scores: of models that were never poisoned, made like those to scan, and part of no test.
        false_alarms: the highest accepted rate, between 0 and 1.
    """
    from scipy.stats import beta

    models = len(scores)
    needed = math.ceil(1 / false_alarms - _ROUNDING) - 1
    rank = math.floor(false_alarms * (models + 1) + _ROUNDING)
    if not 0 < rank <= models:
        return Calibration(models, 0, None, 1 / (models + 1), None, needed)
    threshold = sorted(scores, reverse=True)[rank - 1]
    worst = float(beta.ppf(CONFIDENCE, rank, models + 1 - rank))
    return Calibration(models, rank, threshold, rank / (models + 1), worst, needed)


def p_value(score: float, calibration: Sequence[float]) -> float | None:
    """Return how rare this score is among clean models: (1 + number that score as high) / (1 + number of models).

    The calibration models went through the same scan, so each of their scores is of a best candidate, too. For a clean
    model that is like them, the probability of a p-value of at most a is at most a.

    Args:
        score: of the scanned model.
        calibration: scores of calibration models; the scanned model is not among them.

    Returns:
        The p-value; None without calibration models.
    """
    if not calibration:
        return None
    return (1 + sum(other >= score for other in calibration)) / (1 + len(calibration))


def chance(false_alarms: int, twins: int, rank: int, models: int) -> float:
    """Return the probability of at least so many false alarms where twins are like the calibration models.

    Above the score of rank k among m models, the number of n further ones of the same kind has the beta-binomial
    distribution with the parameters n, k and m + 1 - k, whatever the scores are distributed like.

    Args:
        false_alarms: twins above the threshold.
        twins: number of them, at least one.
        rank: of the threshold among the calibration models' scores, from 1.
        models: number of calibration models.
    """
    from scipy.stats import betabinom

    return float(betabinom.sf(false_alarms - 1, twins, rank, models + 1 - rank))
