"""Scores that chance gives: the same comparison with the paper's methods shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.grid.cell import NO_DEFENSE
from benchmark.paper.compare import COMPARED, Compared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHUFFLES = 2000  # 50 of them lie below the 2.5 % point
Agrees = Callable[[Compared, Compared], bool]  # of a number of ours, and of one of the paper
Column = list[Compared]


@dataclass(frozen=True, slots=True)
class Score:
    """How many numbers agree, and how many do with the paper's methods shuffled.

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


def score(compared: Iterable[Compared], agrees: Agrees) -> Score:
    """Return how many of our numbers agree with the paper's, and with the paper's methods shuffled.

    Args:
        compared: numbers; only those with a verdict on ours count, and victims do not: their grid demands a high ASR.
        agrees: returns whether our number of the first agrees with the paper's number of the second.
    """
    import numpy as np

    chosen = columns(compared)
    found, totals = 0, np.zeros(SHUFFLES, dtype=int)
    for column, places in zip(chosen, shuffles(chosen), strict=True):
        table = np.array([[agrees(ours, papers) for papers in column] for ours in column])
        found += int(table.diagonal().sum())
        totals += table[np.arange(len(column)), places].sum(1)
    low, high = np.percentile(totals, [2.5, 97.5], method="nearest")
    return Score(sum(map(len, chosen)), found, float(totals.mean()), int(low), int(high))


def columns(compared: Iterable[Compared]) -> list[Column]:
    """Return the methods of each victim and metric of each table, in one order in all of them.

    Levels of utility are no column with changes. Numbers without a verdict on ours, and victims, are left out.
    """
    found: dict[tuple[object, ...], Column] = {}
    for one in compared:
        if one.verdict in COMPARED and one.number.defense != NO_DEFENSE:
            number = one.number
            place = (number.table, number.victim, number.trigger, number.metric, one.by_change)
            found.setdefault(place, []).append(one)
    return [sorted(column, key=_form) for column in found.values()]


def shuffles(chosen: Sequence[Column]) -> list[NDArray[np.intp]]:
    """Return, for each column, which of the paper's numbers each of ours is compared with, in each shuffle.

    The methods are the sample: what a method leaves is alike on all victims, in the paper as here. So one shuffle
    gives the paper's methods other names, the same in every column, and leaves victims where they are. Shuffled for
    each column alone, eight columns that say the same thing once would look like eight pieces of evidence.

    Returns:
        Places of shape (shuffles, methods of the column).
    """
    import numpy as np

    place_of = {form: place for place, form in enumerate(sorted({_form(one) for column in chosen for one in column}))}
    drawn = np.random.default_rng(0).random((SHUFFLES, len(place_of)))
    return [drawn[:, [place_of[_form(one)] for one in column]].argsort(1) for column in chosen]


def _form(one: Compared) -> tuple[str, int]:
    """Return the method, and where its parrot stands: what a line of the paper's tables is about."""
    return one.number.method, one.number.parrot_position or 0


def same_verdict(verdict: str) -> Agrees:
    """Return a function that tells whether our number gets a verdict by the margin."""
    return lambda ours, papers: ours.verdict_on(papers.paper) == verdict


def same_kind(ours: Compared, papers: Compared) -> bool:
    """Return whether both numbers are of the same kind."""
    return ours.our_kind == papers.paper_kind
