"""Parts that several figures of a report share: points by victim, error bars, markers and keys."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmark.io.plots import MARKERS
from benchmark.records.aggregate import TableEntry

if TYPE_CHECKING:
    from matplotlib.lines import Line2D


TITLE_LETTERS = 44  # per line of a panel's title
STEP, REACH = 1.2, 1.6  # percent of ASR: between bars, and from the middle of a point to its edge


def by_victim(entries: Iterable[TableEntry]) -> dict[str, list[TableEntry]]:
    """Return the entries of each victim."""
    found: dict[str, list[TableEntry]] = {}
    for entry in entries:
        found.setdefault(entry.victim, []).append(entry)
    return found


def error(entry: TableEntry) -> tuple[float, float]:
    """Return how far the interval reaches below and above the value; 0 and 0 without an interval."""
    value = entry.value or 0.0
    low, high = (value if bound is None else bound for bound in (entry.low, entry.high))
    return max(0.0, value - low), max(0.0, high - value)


def spread(values: Sequence[float]) -> list[float]:
    """Return a height for the bar of each value, percent, so that bars of near values do not cover each other.

    A bar stays within the mark of its point, so of very many near values some still share a place.
    """
    near: list[list[int]] = []
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        if near and values[index] - values[near[-1][-1]] < STEP:
            near[-1].append(index)
        else:
            near.append([index])
    found = list(values)
    for group in near:
        step = min(STEP, 2 * REACH / max(1, len(group) - 1))
        for place, index in enumerate(group):
            found[index] += step * (place - (len(group) - 1) / 2)
    return found


def filled(text: str, letters: int) -> str:
    """Return a text in lines of at most this many letters, which end between words."""
    return textwrap.fill(text, letters, break_on_hyphens=False)


def markers(names: Mapping[str, object]) -> dict[str, str]:
    """Return a marker for each name; of more names than markers some share one."""
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(names)}


def key(color: str, marker: str, label: str, fill: str | None = None) -> Line2D:
    """Return the line of a legend that shows a marker."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", color=color, marker=marker, markersize=7, markerfacecolor=fill or color, label=label
    )
