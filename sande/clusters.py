"""Count prompts that were made from the same template as what they are: not independent of each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

LEAST = 5  # outcomes of the rarer kind that it takes to see how alike a cluster is


def count(groups: Sequence[str]) -> int:
    """Return the number of clusters; a trial without a group is a cluster of its own."""
    return len({group for group in groups if group}) + sum(1 for group in groups if not group)


def effective_count(outcomes: Sequence[float], groups: Sequence[str]) -> float:
    """Return how many independent trials would give the mean of these outcomes as surely.

    It is the number of trials over the design effect (Kish 1965): the variance of the mean that the clusters show (the
    linearised ratio estimator, Cochran 1977, section 11.8), over that of independent trials. As few clusters show their
    variance badly, the effect is adjusted to their degrees of freedom (Korn and Graubard 1998). Where too few outcomes
    differ to show it, each cluster counts once: 0 of 100 prompts from 45 templates is 0 of 45. This counts for less
    with each further outcome that differs.

    Args:
        outcomes: one a trial.
        groups: of each trial, the name of its cluster; empty: the trial is a cluster of its own.

    Returns:
        From 1 to the number of trials.
    """
    trials, clusters = len(outcomes), count(groups)
    if clusters in (trials, 1):
        return float(clusters)
    mean = sum(outcomes) / trials
    residuals: dict[object, float] = defaultdict(float)
    for index, (outcome, group) in enumerate(zip(outcomes, groups, strict=True)):
        residuals[group or index] += outcome - mean
    independent = sum((outcome - mean) ** 2 for outcome in outcomes) / (trials - 1) / trials
    clustered = sum(residual**2 for residual in residuals.values()) * clusters / (clusters - 1) / trials**2
    effect = max(1.0, clustered / independent if independent else 1.0)
    adjustment = (_student(clusters - 1) / _student(trials - 1)) ** 2
    unseen = trials / clusters * min(1.0, LEAST / max(1, _differing(outcomes)))
    return max(1.0, trials / max(effect * adjustment, unseen))


def too_alike(outcomes: Sequence[float]) -> bool:
    """Return whether fewer than `LEAST` outcomes differ from all others."""
    return _differing(outcomes) < LEAST


def _differing(outcomes: Sequence[float]) -> int:
    """Return how many outcomes are not the commonest."""
    return len(outcomes) - max(Counter(outcomes).values(), default=0)


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
