"""Scores that chance gives: the same comparison with the paper's numbers shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmark.grid.cell import NO_DEFENSE
from benchmark.paper.compare import COMPARED, Compared

SHUFFLES = 2000  # 50 of them lie below the 2.5 % point
Agrees = Callable[[Compared, Compared], bool]  # of a number of ours, and of one of the paper


@dataclass(frozen=True, slots=True)
class Score:
    """How many numbers agree, and how many do with the paper's numbers shuffled.

    Attributes:
        count: of numbers that were compared.
        found: of those that agree.
        mean: of those that agree over all shuffles.
        low, high: 2.5 and 97.5 % points over all shuffles.
    """

    count: int
    found: int
    mean: float
    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.found} of {self.count}; shuffled {self.mean:.0f} ({self.low} to {self.high})"


def score(compared: Iterable[Compared], agrees: Agrees) -> Score:
    """Return how many of our numbers agree with the paper's, and with the paper's numbers shuffled.

    Numbers change places within a table and a metric, and levels of utility not with changes. So the shuffled numbers
    are as large as the paper's, but say nothing of the method and the victim that they stand at. Agreement as often as
    this is no evidence that the run reproduces the paper. Numbers of the paper that one number of ours is compared
    with move together, as far as as many others do: they agree, or not, as one.

    Args:
        compared: numbers; only those with a verdict on ours count, and victims do not: their grid demands a high ASR.
        agrees: returns whether our number of the first agrees with the paper's number of the second.
    """
    import numpy as np

    ours_of: dict[tuple[object, ...], list[Compared]] = {}  # the paper's numbers by ours
    for one in compared:
        if one.verdict in COMPARED and one.number.defense != NO_DEFENSE:
            cell = one.entry.row["cell"] if one.entry else id(one)
            ours_of.setdefault((one.number.table, one.number.metric, one.by_change, cell), []).append(one)
    groups: dict[tuple[object, ...], list[list[Compared]]] = {}
    for (*key, _), numbers in ours_of.items():
        groups.setdefault((*key, len(numbers)), []).append(numbers)
    found, totals, generator = 0, np.zeros(SHUFFLES, dtype=int), np.random.default_rng(0)
    for group in groups.values():
        table = np.array([[sum(map(agrees, ours, papers)) for papers in group] for ours in group])
        places = np.arange(len(group))
        found += int(table[places, places].sum())
        totals += table[places, generator.permuted(np.tile(places, (SHUFFLES, 1)), axis=1)].sum(1)
    low, high = np.percentile(totals, [2.5, 97.5], method="nearest")
    return Score(sum(map(len, ours_of.values())), found, float(totals.mean()), int(low), int(high))


def same_verdict(verdict: str) -> Agrees:
    """Return a function that tells whether our number gets a verdict by the margin."""
    return lambda ours, papers: ours.verdict_on(papers.paper) == verdict


def same_kind(ours: Compared, papers: Compared) -> bool:
    """Return whether both numbers are of the same kind."""
    return ours.our_kind == papers.paper_kind
