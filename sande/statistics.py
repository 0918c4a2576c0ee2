"""Intervals of reported numbers, in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson 95 % interval of a share, in percent; sensible also at 0 and 100, where the normal one has no width."""
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Student-t 95 % interval of the mean over independent seeds, clipped to 0 to 100; needs at least two values."""
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance / count)
    return max(0.0, mean - half), min(100.0, mean + half)
