"""Figures of a report, each as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.aggregate import BACKDOOR_METRICS, Entry
from benchmark.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = "osD^vP*X"


def draw(entries: Sequence[Entry], folder: Path) -> list[str]:
    """Draw every figure that the entries have numbers for; returns the names of those written."""
    drawn = {"asr": _asr(entries), "asr_utility": _asr_utility(entries)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        if figure is not None:
            save(figure, folder, name)
    return [name for name, figure in drawn.items() if figure is not None]


def _asr(entries: Sequence[Entry]) -> Figure | None:
    """Bars of the ASR with 95 % intervals, one panel a victim."""
    shown = [entry for entry in entries if entry.metric == "asr" and entry.value is not None]
    if not shown:
        return None
    victims = list(dict.fromkeys(entry.victim for entry in shown))
    defenses = list(dict.fromkeys(entry.defense for entry in shown))
    figure = blank(width=max(4.5, 1.2 + 0.8 * len(defenses)) * min(2, len(victims)), rows=-(-len(victims) // 2))
    for index, victim in enumerate(victims):
        axes: Axes = figure.add_subplot(-(-len(victims) // 2), min(2, len(victims)), index + 1)
        for position, defense in enumerate(defenses):
            for entry in shown:
                if (entry.victim, entry.defense) == (victim, defense):
                    _bar(axes, position, entry)
        axes.set_xticks(range(len(defenses)), defenses, rotation=30, ha="right")
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel("attack success rate (%)")
        weak = any(entry.attack_failed for entry in shown if entry.victim == victim)
        axes.set_title(f"{victim} [attack failed]" if weak else victim, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bar(axes: Axes, position: int, entry: Entry) -> None:
    value, low, high = (number or 0.0 for number in (entry.value, entry.low, entry.high))
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.bar(position, value, color="#b33" if entry.defense == "none" else "#37a", yerr=error, capsize=4, width=0.7)
    axes.annotate(
        f"{value:.1f}",
        (position, high),
        ha="center",
        va="bottom",
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
    )


def _asr_utility(entries: Sequence[Entry]) -> Figure | None:
    """ASR against the mean change of utility: the lower right corner is where a defense should be."""
    asr = {(e.victim, e.defense): e.value for e in entries if e.metric == "asr" and e.value is not None}
    changes: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        if entry.metric not in BACKDOOR_METRICS and entry.change is not None:
            changes.setdefault((entry.victim, entry.defense), []).append(entry.change)
    points = [(key, sum(found) / len(found), asr[key]) for key, found in changes.items() if key in asr]
    if not points:
        return None
    victims, defenses = (dict.fromkeys(names) for names in zip(*(key for key, _, _ in points), strict=True))
    colors = {defense: f"C{index % 10}" for index, defense in enumerate(defenses)}
    markers = {victim: MARKERS[index % len(MARKERS)] for index, victim in enumerate(victims)}
    figure = blank(width=8.5, rows=1)
    axes: Axes = figure.add_subplot()
    for (victim, defense), change, value in points:
        axes.scatter(change, value, marker=markers[victim], color=colors[defense], s=60, zorder=2)
    axes.axvline(0, color="#999", linewidth=0.8, zorder=1)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("mean change of utility against the victim (percentage points)")
    axes.set_ylabel("attack success rate (%)")
    axes.spines[["top", "right"]].set_visible(False)
    keys = [_key(color, "o", defense) for defense, color in colors.items()]
    if len(markers) > 1:
        keys += [_key("#777", marker, victim) for victim, marker in markers.items()]
    figure.legend(handles=keys, fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _key(color: str, marker: str, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", color=color, marker=marker, markersize=7, label=label)


def blank(width: float, rows: int) -> Figure:
    """A figure without axes, so many inches wide and as high as that many rows of panels ask for."""
    # Without pyplot there is no global state and no display to ask for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 3.6 * rows), dpi=150, layout="constrained")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `NAME.png` and `NAME.svg`, the same bytes for the same figure."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "sande-bench"}):  # else ids in the SVG differ from one report to the next
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight")
            write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())
