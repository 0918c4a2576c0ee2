"""Figures of a report, as PNG and SVG. To add a figure, add a function to `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from benchmark.io.plots import ROW, blank, literal
from benchmark.records.aggregate import TableEntry
from benchmark.records.metrics import is_utility
from benchmark.records.recovery import RECOVERY, is_twin, twin_key
from benchmark.records.runs import FAILED_REMOVAL, RECOVERY_MARGIN, SAME, unit_means
from benchmark.report.bars import FEW, asr_bars
from benchmark.report.drawing import TITLE_LETTERS, by_victim, filled, key, markers, spread
from benchmark.report.paper_figures import distributions, poison_rate
from benchmark.report.short import MANY, shortened, undefended
from sande import crossed, registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Change(NamedTuple):
    """A change of utility relative to the victim, percentage points, with its 95 % interval if known."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; without one the value alone."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)


Point = tuple[tuple[str, str], Change, float]  # victim and defense, change of utility, ASR
KEY_LETTERS = 36  # per line of a legend
NOTE_LETTERS = 110  # per line of a note under a figure
COLORS = 10  # of matplotlib's cycle
ROOM = 8.0  # percentage points beyond the changes of utility within which their intervals are never cut
TWIN = "#3a7"


def draw(name: str, entries: Sequence[TableEntry]) -> Figure | None:
    """Draw a figure of the entries of one grid; return None if they have no numbers for it."""
    victims = dict.fromkeys(entry.victim for entry in entries)
    short = shortened(victims).labels if len(victims) > FEW else {victim: victim for victim in victims}
    shown = [replace(entry, victim=literal(short[entry.victim]), defense=literal(entry.defense)) for entry in entries]
    return FIGURES[name](shown)


def _asr_utility(entries: Sequence[TableEntry]) -> Figure | None:
    """Draw ASR against the mean change of utility with its interval; the best defenses are in the lower right."""
    asr = {(e.victim, e.defense): e.value for e in entries if e.metric == "asr" and e.value is not None}
    apart = undefended(entries)  # a clean twin alone has nothing to compare
    shown = [entry for entry in entries if (entry.victim, entry.defense) in asr and entry.victim not in apart]
    tasks: dict[str, None] = {}
    means: dict[tuple[str, str], Change | None] = {}
    for victim, own in by_victim(shown).items():
        of_defenses, left_out = _mean_changes(own)
        tasks |= dict.fromkeys(left_out)
        means |= {(victim, defense): mean for defense, mean in of_defenses.items()}
    places = dict.fromkeys((entry.victim, entry.defense) for entry in shown)
    points = [(place, mean, asr[place] or 0.0) for place in places if (mean := means.get(place)) is not None]
    without = [f"{defense} on {victim}" for (victim, defense), mean in means.items() if mean is None]
    if not points:
        return None
    defenses = dict.fromkeys(defense for (_, defense), _, _ in points)
    figure = _asr_utility_by_victim(points) if len(defenses) > COLORS else _asr_utility_in_one(points)
    notes = [f"Without {', '.join(map(literal, tasks))}, which not all defenses of a victim have."] if tasks else []
    notes += [f"No point without a task that all have: {', '.join(without)}."] if without else []
    left, right = _limits(points)
    if any(change.ends[0] < left or change.ends[1] > right for _, change, _ in points):
        notes.append("Intervals that reach further are cut at the edge of the figure.")
    if notes:
        figure.supxlabel("\n".join(filled(note, NOTE_LETTERS) for note in notes), fontsize=8)
    return figure


def _mean_changes(entries: Sequence[TableEntry]) -> tuple[dict[str, Change | None], list[str]]:
    """Return the mean change of utility of each defense of one victim, and the tasks that are not in it.

    The mean is over the tasks that all of its defenses have: without its worst task a defense would look better. Each
    task counts once, whatever prompts it was asked with, as on a leaderboard. None: a defense has none of these tasks.
    """
    metrics = {entry.metric for entry in entries}
    changes: dict[str, dict[str, TableEntry]] = {}
    tasks: dict[str, None] = {}
    for entry in entries:
        if is_utility(entry.metric) and registry.metric_info(entry.metric).variant_of not in metrics:
            tasks[entry.metric] = None
            own = changes.setdefault(entry.defense, {})
            if entry.change is not None:
                own[entry.metric] = entry
    measured = [own for own in changes.values() if own]
    common = [task for task in tasks if all(task in own for own in measured)]
    means = {
        defense: _mean_change([own[task] for task in common]) if own and common else None
        for defense, own in changes.items()
    }
    return means, [task for task in tasks if task not in common]


def _mean_change(tasks: Sequence[TableEntry]) -> Change:
    """Return the mean change over tasks; its interval is the table's of one task, a leaderboard's of several."""
    mean = sum(entry.change or 0.0 for entry in tasks) / len(tasks)
    if tasks[0].is_victim:
        return Change(mean)
    if len(tasks) == 1:
        return Change(mean, *(tasks[0].change_interval() or ()))
    answers = [of_task for entry in tasks if (of_task := entry.changes())]
    alike = len(answers) == len(tasks) and len({len(of_task.values) for of_task in answers}) == 1
    if not alike or abs(sum(of_task.values.mean() for of_task in answers) / len(answers) - mean) > SAME:
        return Change(mean)  # of some runs the answers, or those to some questions, are not known
    return Change(mean, *crossed.interval(answers))


def _asr_utility_in_one(points: Sequence[Point]) -> Figure:
    """Draw ASR against the change of utility of all victims in one panel."""
    victims, defenses = (dict.fromkeys(names) for names in zip(*(place for place, _, _ in points), strict=True))
    colors = {defense: f"C{index % COLORS}" for index, defense in enumerate(defenses)}
    marks = markers(victims)
    keys = [key(color, "o", filled(defense, KEY_LETTERS)) for defense, color in colors.items()]
    if len(marks) > 1:
        keys += [key("black", mark, filled(name, KEY_LETTERS), fill="none") for name, mark in marks.items()]
    lines = sum(str(one.get_label()).count("\n") + 1.4 for one in keys)
    figure = blank(width=8.5, rows=max(1.0, 0.15 * lines / ROW))
    axes: Axes = figure.add_subplot()
    for (victim, defense), change, value in points:
        axes.scatter(change.value, value, marker=marks[victim], color=colors[defense], s=60, alpha=0.8, zorder=2)
    _intervals(axes, points, colors)
    axes.set_xlim(_limits(points))
    axes.set_xlabel("mean change of utility relative to the victim\n(percentage points, with 95 % intervals)")
    axes.set_ylabel("attack success rate (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=keys, fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _asr_utility_by_victim(points: Sequence[Point]) -> Figure:
    """Draw ASR against the change of utility, one panel per victim, for more defenses than colors."""
    looks = _looks(dict.fromkeys(defense for (_, defense), _, _ in points))
    figure, panels = _panels(list(dict.fromkeys(victim for (victim, _), _, _ in points)))
    for (victim, defense), change, value in points:
        color, marker = looks[defense]
        panels[victim].scatter(change.value, value, color=color, marker=marker, s=50, alpha=0.85, zorder=2)
    colors = {defense: color for defense, (color, _) in looks.items()}
    for victim, axes in panels.items():
        _intervals(axes, [point for point in points if point[0][0] == victim], colors)
        axes.set_xlim(_limits(points))
        axes.set_xlabel("mean change of utility (percentage points), 95 % intervals", fontsize=9)
    keys = [key(color, marker, defense) for defense, (color, marker) in looks.items()]
    figure.legend(handles=keys, fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _intervals(axes: Axes, points: Sequence[Point], colors: Mapping[str, str]) -> None:
    """Draw the known intervals of changes as thin bars, which do not cover each other where the ASR is alike."""
    known = [point for point in points if point[1].low is not None]
    places = spread([asr for _, _, asr in known])
    for ((_, defense), change, _), place in zip(known, places, strict=True):
        below, above = (max(0.0, reach) for reach in (change.value - change.ends[0], change.ends[1] - change.value))
        axes.errorbar(
            change.value,
            place,
            xerr=[[below], [above]],
            fmt="none",
            ecolor=(colors[defense], 0.5),
            elinewidth=1,
            capsize=2,
            zorder=1,
        )
    axes.axvline(0, color="#999", linewidth=0.8, zorder=1)
    axes.set_ylim(-4, 104)


def _limits(points: Sequence[Point]) -> tuple[float, float]:
    """Return the ends of the axis for changes: around the intervals, except those far wider than the changes."""
    changes = [0.0, *(change.value for _, change, _ in points)]
    lows, highs = zip(*(change.ends for _, change, _ in points), strict=True)
    room = max(ROOM, max(changes) - min(changes))
    left, right = max(min(0.0, *lows), min(changes) - room), min(max(0.0, *highs), max(changes) + room)
    edge = 0.04 * (right - left) or 1.0
    return left - edge, right + edge


def _panels(victims: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel for the ASR of each victim, two in a row, or three of many."""
    columns = min(2 if len(victims) <= MANY else 3, len(victims))
    rows = -(-len(victims) // columns)
    figure = blank(width=3.4 + 3.4 * columns, rows=rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    found = dict(zip(victims, panels, strict=False))
    for victim, axes in found.items():
        axes.set_title(filled(victim, TITLE_LETTERS), fontsize=9)
        axes.set_ylabel("attack success rate (%)", fontsize=9)
        axes.tick_params(labelbottom=True, labelleft=True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(victims) :]:
        axes.remove()
    return figure, found


def _looks(defenses: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Return a color and a marker for each defense, no two the same."""
    return {name: (f"C{index % COLORS}", marker) for index, (name, marker) in enumerate(markers(defenses).items())}


def _asr_recovery(entries: Sequence[TableEntry]) -> Figure | None:
    """Draw ASR against what a fresh parrot recovers, one panel per victim, with the level of its clean twin.

    The green area ends where a recovery no longer counts as the twin's.
    """
    asr = {(e.victim, e.defense): e for e in entries if e.metric == "asr" and e.value is not None}
    found = [e for e in entries if e.metric == RECOVERY and e.value is not None and (e.victim, e.defense) in asr]
    twins = {twin_key(entry): entry for entry in found if is_twin(entry)}
    victims = by_victim(entry for entry in found if not is_twin(entry))
    if not victims:
        return None
    defenses = dict.fromkeys(entry.defense for points in victims.values() for entry in points)
    looks = _looks(defenses)
    figure, panels = _panels(list(victims))
    for victim, points in victims.items():
        axes = panels[victim]
        axes.set(xlim=(-4, 104), ylim=(-4, 104))
        for entry in points:
            color, marker = looks[entry.defense]
            _point(axes, entry, asr[victim, entry.defense], color, marker)
        if twin := next((twins[twin_key(entry)] for entry in points if twin_key(entry) in twins), None):
            level = twin.value or 0.0
            axes.axvline(level, color=TWIN, linewidth=1.5, zorder=1)
            axes.axvspan(axes.get_xlim()[0], level + RECOVERY_MARGIN, color=TWIN, alpha=0.13, linewidth=0, zorder=0)
        axes.axhline(FAILED_REMOVAL, color="#999", linestyle=":", linewidth=1, zorder=1)
        axes.set_xlabel("recovered by a fresh parrot (%)", fontsize=9)
    keys = [key(color, marker, defense) for defense, (color, marker) in looks.items()]
    keys.append(key("#999", "_", "from the lowest to the highest seed"))
    keys += [key(TWIN, "|", f"clean twin (area: up to {RECOVERY_MARGIN:g} points above)")] if twins else []
    figure.legend(handles=keys, fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _point(axes: Axes, entry: TableEntry, asr: TableEntry, color: str, marker: str) -> None:
    """Draw the recovery of a defense and its ASR, with pale lines from the lowest to the highest seed."""
    axes.errorbar(
        entry.value or 0.0,
        asr.value or 0.0,
        xerr=_range(entry),
        yerr=_range(asr),
        fmt=marker,
        color=color,
        ecolor=(color, 0.4),
        elinewidth=1,
        markersize=8,
        markeredgecolor="white",
        markeredgewidth=0.6,
        alpha=0.85,
        zorder=2,
    )


def _range(entry: TableEntry) -> list[list[float]]:
    """Return how far the means of the seeds reach below and above the value, as matplotlib takes it."""
    value, means = entry.value or 0.0, unit_means(entry.runs)
    return [[max(0.0, value - min(means))], [max(0.0, max(means) - value)]]


FIGURES: Mapping[str, Callable[[Sequence[TableEntry]], Figure | None]] = {
    "asr": asr_bars,
    "asr_utility": _asr_utility,
    "asr_recovery": _asr_recovery,
    "figure_2": poison_rate,
    "figure_3": distributions,
}
SHOWS = {
    "asr": "Bars: attack success rate of each defense with 95 % intervals",
    "asr_utility": "Points: attack success rate of each defense against its change of utility with 95 % intervals",
    "asr_recovery": "Points: attack success rate of each defense against what a fresh parrot recovers",
    "figure_2": "Figure 2: attack success rate against the poison rate, with 95 % intervals",
    "figure_3": "Figure 3: the highest probabilities of the planted response, by prompt",
}
