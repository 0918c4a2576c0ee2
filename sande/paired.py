"""Tests and intervals of the difference of two models that had the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sande.clusters import LEAST
from sande.statistics import CONFIDENCE, RESAMPLES, share_unseen


def mcnemar(first: Sequence[bool], second: Sequence[bool], groups: Sequence[str] = ()) -> float:
    """Return the two-sided p-value of McNemar's exact test that two models are equally often right.

    Only questions on which the models differ count. Under the null hypothesis, their split is binomial with 1/2; with
    groups, the differences of a whole group change their sign together. Without any difference, p is 1.

    Args:
        first: right or wrong, question by question.
        second: the same of the other model, in the same order.
        groups: of each question, the name of the questions made from the same template; empty: it is like no other.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy.stats import binomtest

    differences = [bool(other) - bool(one) for one, other in zip(first, second, strict=True)]
    if any(groups):
        return _flipped_p([int(difference) for difference, _ in _clustered(differences, groups)])
    lost, won = differences.count(-1), differences.count(1)
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def _flipped_p(sums: Sequence[int]) -> float:
    """Return how likely whole numbers with random signs have a sum as far from 0 as theirs, exactly."""
    import numpy as np

    reach = sum(map(abs, sums))
    chances = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chances[reach] = 1.0
    for number in filter(None, sums):
        chances = (np.roll(chances, number) + np.roll(chances, -number)) / 2
    return min(1.0, float(chances[np.abs(np.arange(-reach, reach + 1)) >= abs(sum(sums))].sum()))


def _clustered(differences: Sequence[float], groups: Sequence[str]) -> list[tuple[float, int]]:
    """Return sum and number of the differences of each group; those without a group are alone."""
    found: dict[str | int, tuple[float, int]] = {}
    for index, (difference, group) in enumerate(zip(differences, groups or [""] * len(differences), strict=True)):
        total, number = found.get(group or index, (0, 0))
        found[group or index] = total + difference, number + 1
    return list(found.values())


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], groups: Sequence[str] = (), seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap 95 % interval (percentile) of mean(second) - mean(first), in percentage points.

    Questions are drawn with replacement, each with both of its outcomes, so what makes a question easy or hard for
    both models cancels out. Questions of one group are drawn together. Where fewer than five questions of many have
    any difference but the commonest one, a resample often has none of them: the interval then reaches at least as far
    as if none had been seen.

    Args:
        first: outcomes from 0 to 1, question by question; a single one gives the widest interval, -100 to 100.
        second: the same of the other model, in the same order.
        groups: as for `mcnemar`.
        seed: decides the resampling.

    Raises:
        ValueError: the lengths differ.
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"{len(first)} outcomes cannot be paired with {len(second)}")
    clusters = _clustered([other - one for one, other in zip(first, second, strict=True)], groups)
    if len(clusters) < 2:
        return -100.0, 100.0
    alike, times = np.unique(np.array(clusters, dtype=float), axis=0, return_counts=True)
    # How often a resample draws clusters that are alike is multinomial; drawing that instead of every question takes
    # milliseconds for all of MMLU, where scipy.stats.bootstrap takes a second.
    drawn = np.random.default_rng(seed).multinomial(len(clusters), times / len(clusters), size=RESAMPLES)
    means = 100 * drawn @ alike[:, 0] / (drawn @ alike[:, 1])
    low, high = map(float, np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]))
    of_means = Counter(difference / number for difference, number in clusters)
    if len(clusters) - max(of_means.values()) < min(LEAST, len(clusters) / 2):
        difference, least = 100 * sum(one for one, _ in clusters) / len(first), share_unseen(len(clusters))
        low, high = max(-100.0, min(low, difference - least)), min(100.0, max(high, difference + least))
    return low, high
