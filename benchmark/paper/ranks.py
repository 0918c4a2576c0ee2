"""The order of the methods compared with the paper's: Kendall's tau-b over the methods of each victim.

A small run has other numbers than the paper's models, and may still tell the methods apart as the paper does. Two that
differ by no more than a margin are tied (tau-b, Kendall 1945), so the order of those that remove everything is no
agreement and no disagreement.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.paper.chance import SHUFFLES, columns, shuffles
from benchmark.paper.compare import Compared
from benchmark.records import runs
from sande.statistics import over_seeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST = 3  # methods of a victim
ROUNDING = 1e-9  # of differences of numbers with two decimals


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the methods come in the paper's order, mean over the paper's victims and over our attack seeds.

    Attributes:
        victims: columns of the paper's tables with at least `LEAST` methods, some of which differ in both.
        tau: 1 for the same order, -1 for the opposite one.
        seeds: attack seeds of ours in which a victim has all of its methods, and some of these differ.
        interval: of 95 %, over these seeds; None of fewer than two.
        low, high: 2.5 and 97.5 % points with the paper's methods shuffled, alike for all victims.
    """

    victims: int
    tau: float
    seeds: int
    interval: tuple[float, float] | None
    low: float
    high: float


def agreement(compared: Iterable[Compared]) -> Agreement | None:
    """Return how far methods come in the paper's order; None if no victim has enough of them.

    Where all of ours are tied, or all of the paper's, there is no order, and nothing counts.

    Args:
        compared: rates alone, or utilities alone; those without a verdict on ours, and victims, do not count.
    """
    import numpy as np

    chosen = [column for column in columns(compared) if len(column) >= LEAST]
    seeds = sorted({seed for column in chosen for one in column for seed in _by_seed(one)})
    by_seed = [[_scaled(column, seed) for column in chosen] for seed in seeds]
    # Mean over the columns with an order first: a seed has one tau.
    by_seed = [[each / count for each in of_seed] for of_seed in by_seed if (count := sum(map(np.any, of_seed)))]
    if not by_seed:
        return None
    victims, totals, taus = 0, np.zeros(SHUFFLES), np.zeros(len(by_seed))
    for column, places, *ours in zip(chosen, shuffles(chosen), *by_seed, strict=True):
        papers = _papers(column)
        victims += any(map(np.any, ours))
        taus += [float((each * papers).sum()) for each in ours]
        totals += (np.mean(ours, axis=0) * papers[places[:, :, None], places[:, None, :]]).sum((1, 2))
    low, high = np.percentile(totals, [2.5, 97.5])
    interval = _interval(list(taus)) if len(taus) > 1 else None
    return Agreement(victims, float(taus.mean()), len(taus), interval, float(low), float(high))


def _scaled(column: Sequence[Compared], seed: int) -> NDArray[np.float64]:
    """Return the signs of ours over the denominator of tau-b, by one attack seed.

    Zeros where nothing has an order, or a method lacks the seed. The denominator is the geometric mean of the pairs
    that ours and the paper's tell apart.
    """
    import numpy as np

    values = [_by_seed(one).get(seed, math.nan) for one in column]
    if any(map(math.isnan, values)):
        return np.zeros((len(column), len(column)))
    ours = _signs(values, column[0].margin)
    norm = math.sqrt(float(abs(ours).sum()) * float(abs(_papers(column)).sum()))
    scaled: NDArray[np.float64] = ours / (norm or math.inf)
    return scaled


def _interval(taus: Sequence[float]) -> tuple[float, float]:
    low, high = over_seeds([100 * tau for tau in taus], -100.0)
    return low / 100, high / 100


def _signs(values: Sequence[float], margin: float) -> NDArray[np.int64]:
    """Return 1, 0 or -1 for each two values, of shape (methods, methods): the first is more, like or less."""
    import numpy as np

    array = np.asarray(values)
    differences = array[:, None] - array[None, :]
    return np.where(abs(differences) <= margin + ROUNDING, 0, np.sign(differences)).astype(np.int64)


def _papers(column: Sequence[Compared]) -> NDArray[np.int64]:
    return _signs([one.paper for one in column], column[0].margin)


def _by_seed(one: Compared) -> dict[int, float]:
    """Return our number by attack seed, means over defense seeds."""
    assert one.entry is not None, "a number with a verdict on ours"
    values = runs.changes(one.entry.runs, one.entry.of_victims) if one.by_change else one.entry.runs
    found: dict[int, list[float]] = {}
    for (attack, _), value in values.items():
        found.setdefault(attack, []).append(value)
    return {seed: statistics.fmean(of) for seed, of in found.items()}
