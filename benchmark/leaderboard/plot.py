"""Layout of the interactive plot: points, whiskers, labels and axes, in pixels.

matplotlib's SVG would not do: its inline styles are against the pages' policy, and its marks have no links, no
descriptions for screen readers, no classes for the colours of a dark theme, and no labels that avoid each other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from benchmark.io.units import counted
from benchmark.leaderboard.board import Board, Number, Run, Standing


@dataclass(frozen=True, slots=True)
class Level:
    """A level of knowledge: its name, its class in the style sheet, and its mark as an SVG path around 0, 0."""

    name: str
    css: str
    shape: str


# The levels of `benchmark.grid.levels.LEVELS`.
LOOKS = {
    "trigger": Level("trigger", "trigger", "M-5.5-5.5h11v11h-11z"),
    "incident": Level("incident", "incident", "M0-7.5 7-2.3 4.3 6-4.3 6-7-2.3z"),
    "response": Level("response", "response", "M0-7.5 7.5 0 0 7.5-7.5 0z"),
    "first token": Level("first token", "first-token", "M0-7 7 5.5-7 5.5z"),
    "nothing": Level("nothing", "nothing", "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z"),
    "clean model": Level("clean model", "clean-model", "M0 7 7-5.5-7-5.5z"),
    "other models": Level("other models", "other-models", "M-7-5.5 7-5.5-7 5.5 7 5.5z"),
}
OTHER = "M-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z"


def level(knows: str) -> Level:
    """Return the look of a level; levels that plug-ins add share one mark."""
    return LOOKS.get(knows) or Level(knows, "other", OTHER)


@dataclass(frozen=True, slots=True)
class CellRow:
    """A cell's row in the table of cells."""

    cell: Run
    compared: str  # yes, no

    @property
    def file(self) -> str:
        """File name of its page: the cell's id if that is a hash of ours, else a hash of the id."""
        known = re.fullmatch("[0-9a-f]{12}", self.cell.cell)
        return self.cell.cell if known else hashlib.sha256(self.cell.cell.encode()).hexdigest()[:12]

    @property
    def id(self) -> str:
        """Id of its row in the page."""
        return f"cell-{self.file}"

    @property
    def case(self) -> str:
        """The victim and the setting."""
        return ", ".join(self.cell.label.split(", ")[:2])

    @property
    def rest(self) -> str:
        """The other settings that distinguish its case."""
        return ", ".join(self.cell.label.split(", ")[2:])

    @property
    def seeds(self) -> str:
        """Seeds of the attack and of the defense."""
        return f"attack seed {self.cell.attack_seed}, defense seed {self.cell.defense_seed}"

    def href(self, part: str) -> str:
        """Return the address of a part of its page, such as a metric; of the whole page if the cell has no values."""
        part = "" if self.cell.flaw else part
        return f"cells/{self.file}.html" + (f"#{quote(part)}" if part else "")


@dataclass(frozen=True, slots=True)
class StandingRow:
    """A defense's row in the standings."""

    standing: Standing
    id: str
    cells: Sequence[CellRow]  # that its numbers are made from
    submitted: bool

    @property
    def behind(self) -> str:
        """Number of runs with those that count as their victims, and number of victims."""
        count, gaps = self.standing.victims, len(self.standing.gaps)
        victims = counted(count, "victim") + (", lacks runs" if self.standing.absent else "")
        return f"of {self.standing.cells + gaps}, {victims}" if gaps else victims

    def href(self, part: str) -> str:
        """Return the address of the cells that a number is made from: the page of one, or the rows of several."""
        if len(self.cells) == 1:
            return self.cells[0].href(part)
        return f"#{self.cells[0].id}" if self.cells else f"#{self.id}"


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis, with its distance from the left or the top in pixels."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """A defense in the plot, in pixels."""

    row: StandingRow
    level: Level
    x: float
    y: float
    whiskers: list[tuple[float, float, float, float]]
    description: str
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = ""  # of the label; empty if none fits
    leader: bool = False


@dataclass(slots=True)
class Plot:
    """The layout of ASR against utility lost, in pixels."""

    x_range: tuple[float, float]
    width: int = 480
    height: int = 380
    left: int = 56
    right: int = 468
    top: int = 12
    bottom: int = 322
    points: list[Point] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    victim: Mapping[str, float] | None = None

    def x(self, loss: float) -> float:
        """Return the distance from the left edge."""
        low, high = self.x_range
        return round(self.left + (loss - low) / (high - low) * (self.right - self.left), 1)

    def y(self, asr: float) -> float:
        """Return the distance from the top; the axis reaches a little beyond 0 and 100 %."""
        return round(self.bottom - (asr + 5) / 110 * (self.bottom - self.top), 1)


def plot(made: Board, standings: Sequence[StandingRow]) -> Plot:
    """Lay out the points with their intervals and labels, and the axes.

    The unverified entries, and defenses that lack runs, have no mark: it would compare them with the others.
    """
    from matplotlib.ticker import MaxNLocator

    complete = [row for row in standings if row.standing.verified and not row.standing.absent]
    shown = [row for row in complete if row.standing.loss]
    losses = [0.0, *(row.standing.loss.value for row in shown if row.standing.loss)]
    room = 0.12 * (max(losses) - min(losses)) or 1.0
    drawn = Plot((min(losses) - room, max(losses) + room))
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(*drawn.x_range)
    inside = [float(tick) for tick in ticks if drawn.x_range[0] <= tick <= drawn.x_range[1]]
    drawn.x_ticks = [Tick(drawn.x(tick), f"{round(tick, 6):g}".replace("-", "−")) for tick in inside]
    drawn.y_ticks = [Tick(drawn.y(tick), str(tick)) for tick in range(0, 101, 20)]
    if made.victim_asr is not None:
        drawn.victim = {"x": drawn.x(0.0), "y": drawn.y(made.victim_asr)}
    drawn.points = _labelled([_point(drawn, row, row.standing.loss) for row in shown if row.standing.loss], drawn)
    return drawn


def _point(drawn: Plot, row: StandingRow, loss: Number) -> Point:
    one = row.standing
    x, y = drawn.x(loss.value), drawn.y(one.asr.value)
    whiskers = []
    if loss.low is not None and loss.high is not None:
        whiskers.append((drawn.x(loss.low), y, drawn.x(loss.high), y))
    if one.asr.low is not None and one.asr.high is not None:
        whiskers.append((x, drawn.y(one.asr.low), x, drawn.y(one.asr.high)))
    description = (
        f"{one.defense}: {one.asr.value:.1f} % ASR left, {loss.value:+.2f} points of utility lost; {one.knows} known"
    )
    return Point(row, level(one.knows), x, y, whiskers, description)


_WAYS = ((1, 0), (-1, 0), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7), (0, -1), (0, 1))


def _labelled(points: Sequence[Point], drawn: Plot) -> list[Point]:
    """Return the points with labels, each as near as it fits without covering a mark or another label."""
    taken = [(point.x - 8, point.y - 8, point.x + 8, point.y + 8) for point in points]
    if drawn.victim:
        x, y = drawn.victim["x"], drawn.victim["y"]
        taken.append((x - 8, y - 8, x + 8, y + 8))
    found = []
    for point in points:
        width = 8.6 * len(point.row.standing.defense)  # of text of 15 pixels
        for distance in (12, 26, 42, 60, 80, 104, 130, 160):
            for across, down in _WAYS:
                x, y = point.x + distance * across, point.y + distance * down
                anchor = "start" if across > 0 else "end" if across < 0 else "middle"
                start = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
                box = (start, y - 8, start + width, y + 8)
                inside = (
                    drawn.left <= box[0] and box[2] <= drawn.right and drawn.top <= box[1] and box[3] <= drawn.bottom
                )
                if inside and not any(_overlap(box, other) for other in taken):
                    break
            else:
                continue
            taken.append(box)
            label_x, label_y = round(x, 1), round(y, 1)
            point = replace(point, label_x=label_x, label_y=label_y, anchor=anchor, leader=distance > 12)
            break
        found.append(point)
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
