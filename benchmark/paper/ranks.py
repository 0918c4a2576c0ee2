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

from benchmark.grid.cell import NO_DEFENSE
from benchmark.paper.chance import SHUFFLES
from benchmark.paper.compare import COMPARED, Compared
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
        seeds: attack seeds of ours that all of these numbers have.
        interval: of 95 %, over these seeds; None of fewer than two.
        low, high: 2.5 and 97.5 % points with the paper's numbers shuffled among the methods of each victim.
    """

    victims: int
    tau: float
    seeds: int
    interval: tuple[float, float] | None
    low: float
    high: float


def agreement(compared: Iterable[Compared]) -> Agreement | None:
    """Return how far methods come in the paper's order; None if no victim has enough of them.

    Columns of the paper that are compared with the same cells of ours, method by method, are shuffled alike.

    Args:
        compared: rates alone, or utilities alone; those without a verdict on ours, and victims, do not count.
    """
    import numpy as np

    columns: dict[tuple[object, ...], list[Compared]] = {}
    for one in compared:
        if one.verdict in COMPARED and one.number.defense != NO_DEFENSE:
            number = one.number
            columns.setdefault((number.table, number.victim, number.trigger, number.metric), []).append(one)
    chosen = [column for column in columns.values() if len(column) >= LEAST and _norm(column)]
    if not chosen:
        return None
    seeds = _seeds(chosen)
    generator = np.random.default_rng(0)
    totals, by_column = np.zeros(SHUFFLES), list[list[float]]()
    alike: dict[tuple[object, ...], list[list[Compared]]] = {}
    for column in chosen:
        alike.setdefault(tuple(one.entry.row["cell"] if one.entry else None for one in column), []).append(column)
    for group in alike.values():
        places = generator.permuted(np.tile(np.arange(len(group[0])), (SHUFFLES, 1)), axis=1)
        for column in group:
            ours, papers = [_scaled(column, seed) for seed in seeds or (None,)], _papers(column)
            by_column.append([float((each * papers).sum()) for each in ours])
            totals += (np.mean(ours, axis=0) * papers[places[:, :, None], places[:, None, :]]).sum((1, 2))
    low, high = np.percentile(totals / len(chosen), [2.5, 97.5])
    taus = [statistics.fmean(of_seed) for of_seed in zip(*by_column, strict=True)]
    interval = _interval(taus) if len(taus) > 1 else None
    return Agreement(len(chosen), statistics.fmean(taus), len(seeds), interval, float(low), float(high))


def _scaled(column: Sequence[Compared], seed: int | None) -> NDArray[np.float64]:
    """Return the signs of ours over the denominator of tau-b, by one attack seed; zeros where nothing has an order."""
    ours, norm = _signs(_ours(column, seed), column[0].margin), _norm(column, seed)
    scaled: NDArray[np.float64] = ours / (norm or math.inf)
    return scaled


def _norm(column: Sequence[Compared], seed: int | None = None) -> float:
    """Return the denominator of tau-b: the geometric mean of the pairs that ours and the paper's tell apart."""
    ours = _signs(_ours(column, seed), column[0].margin)
    return math.sqrt(float(abs(ours).sum()) * float(abs(_papers(column)).sum()))


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


def _ours(column: Iterable[Compared], seed: int | None = None) -> list[float]:
    """Return our numbers, of an attack seed or of all: values, or changes where these are compared."""
    return [statistics.fmean(values.values() if seed is None else [values[seed]]) for values in map(_by_seed, column)]


def _seeds(columns: Iterable[Iterable[Compared]]) -> list[int]:
    """Return the attack seeds that all numbers have."""
    return sorted(set.intersection(*({*_by_seed(one)} for column in columns for one in column)))


def _by_seed(one: Compared) -> dict[int, float]:
    """Return our number by attack seed, means over defense seeds."""
    assert one.entry is not None, "a number with a verdict on ours"
    values = runs.changes(one.entry.runs, one.entry.of_victims) if one.by_change else one.entry.runs
    found: dict[int, list[float]] = {}
    for (attack, _), value in values.items():
        found.setdefault(attack, []).append(value)
    return {seed: statistics.fmean(of) for seed, of in found.items()}
