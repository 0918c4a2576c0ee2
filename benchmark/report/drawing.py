"""Parts that several figures of a report share: points by victim, error bars, markers and keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from benchmark.io.plots import MARKERS
from benchmark.records.aggregate import TableEntry

if TYPE_CHECKING:
    from matplotlib.lines import Line2D


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


def markers(names: Mapping[str, object]) -> dict[str, str]:
    """Return a marker for each name; of more names than markers some share one."""
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(names)}


def key(color: str, marker: str, label: str, fill: str | None = None) -> Line2D:
    """Return the line of a legend that shows a marker."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", color=color, marker=marker, markersize=7, markerfacecolor=fill or color, label=label
    )
