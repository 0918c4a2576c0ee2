"""Bars of attack success rates, in panels by victim or by defense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmark.io.markdown import MISSING
from benchmark.io.plots import ROW, blank
from benchmark.records.aggregate import TableEntry
from benchmark.records.recovery import is_twin
from benchmark.records.runs import Basis
from benchmark.report.drawing import TITLE_LETTERS, by_victim, error, filled
from benchmark.report.short import undefended

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 4  # victims whose labels are shown whole, and of which each has a panel of its defenses
PANELS = 3  # panels in a row; of more defenses, also many victims have a panel each
DEFENSE_LETTERS, VICTIM_LETTERS = 32, 80  # per line of a bar's name
SPACE = 118  # percent: end of an axis with "100.0" to the right of a bar


def asr_bars(entries: Sequence[TableEntry]) -> Figure | None:
    """Draw the ASR as bars with 95 % intervals, one panel per victim.

    Of many victims and few defenses there is one panel per defense. The table alone has victims without any defense
    where others have one, and clean twins where none has.
    """
    found = [entry for entry in entries if entry.metric == "asr" and entry.value is not None]
    are_victims = all(entry.is_victim for entry in found)
    apart = {entry.victim for entry in found if is_twin(entry)} if are_victims else undefended(found)
    shown = [entry for entry in found if entry.victim not in apart] or found
    if not shown:
        return None
    victims = {f"{victim}{_weak(bars)}": bars for victim, bars in by_victim(shown).items()}
    of_victims = {victim: {entry.defense: entry for entry in bars} for victim, bars in victims.items()}
    defenses = dict.fromkeys(entry.defense for entry in shown)
    if len(victims) == 1 or len(defenses) > PANELS or (len(defenses) > 1 and len(victims) <= FEW):
        return _bars(of_victims, list(defenses), DEFENSE_LETTERS)
    of_defenses = {
        defense: {victim: bars[defense] for victim, bars in of_victims.items() if defense in bars}
        for defense in defenses
    }
    letters = TITLE_LETTERS if len(defenses) > 1 else VICTIM_LETTERS
    return _bars(of_defenses, list(victims), letters, columns=PANELS, width=2.6 if len(defenses) > 1 else 4.5)


def _bars(
    panels: Mapping[str, Mapping[str, TableEntry]],
    names: Sequence[str],
    letters: int,
    columns: int = 2,
    width: float = 3.4,
) -> Figure:
    """Draw panels of bars.

    Args:
        panels: the entry of each bar by the name of the panel and of the bar.
        names: of all bars, from the top.
        letters: per line of the name of a bar.
        columns: number of panels in a row.
        width: of a panel, inches.
    """
    ticks = [filled(name, letters) for name in names]
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = 1.2 + len(ticks) * (0.1 + 0.14 * max(tick.count("\n") + 1 for tick in ticks))
    longest = max(len(line) for tick in ticks for line in tick.split("\n"))
    figure = blank(width=0.5 + 0.07 * longest + width * columns, rows=rows * height / ROW)
    places = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, (title, bars) in zip(places, panels.items(), strict=False):
        for position, name in enumerate(names):
            if name in bars:
                _bar(axes, position, bars[name])
            else:
                axes.text(2, position, MISSING, va="center", color="#555", fontsize=8)
        if len(panels) > 1 or len(names) == 1 or not all(entry.is_victim for entry in bars.values()):
            axes.set_title(filled(title, TITLE_LETTERS), fontsize=9)
        axes.set_xlabel(f"attack success rate (%)\nintervals {_held_for(bars.values())}", fontsize=9)
        axes.tick_params(labelbottom=True)  # also above an empty place
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_yticks(range(len(ticks)), ticks)
    first.set_ylim(len(ticks) - 0.4, -0.6)
    first.set_xlim(0, SPACE)
    first.set_xticks(range(0, 101, 20))
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return figure


def _weak(bars: Sequence[TableEntry]) -> str:
    """Return how many attacks of a panel failed, if any did."""
    entry = max(bars, key=lambda each: each.attack_failed)
    if not entry.attack_failed:
        return ""
    return " [attack failed]" if entry.seeds == 1 else f" [{entry.attack_failed} of {entry.seeds} attacks failed]"


def _held_for(bars: Iterable[TableEntry]) -> str:
    """Return what the intervals of these bars hold for."""
    bases: set[Basis] = {entry.basis for entry in bars}
    names: dict[Basis, str] = {
        "model": "of each model alone",
        "victim": "over defense seeds",
        "seeds": "over attack seeds",
    }
    return names[bases.pop()] if len(bases) == 1 else "as in the table"


def _bar(axes: Axes, position: int, entry: TableEntry) -> None:
    """Draw a horizontal bar with its interval, and its value to the right of it."""
    value = entry.value or 0.0
    below, above = error(entry)
    color = "#b33" if entry.is_victim else "#37a"
    axes.barh(position, value, color=color, xerr=[[below], [above]], capsize=3, height=0.7)
    axes.annotate(
        f"{value:.1f}",
        (value + above, position),
        ha="left",
        va="center",
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
    )
