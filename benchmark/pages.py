"""The leaderboard as static pages: one with the tables and the plot, and one for each cell behind its numbers.

They need neither server nor network, and work from a file. Whatever comes from results is escaped, and their policy
lets no script or style through but their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from benchmark.files import write_atomically
from benchmark.leaderboard import Board, Measured, Number, Standing, ladder, more_label, unit

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SAMPLES = 20  # published records of a metric that a cell's page shows

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """What a defense must know: its name, its class in the style sheet, and its mark as an SVG path around 0, 0."""

    name: str
    css: str
    shape: str


# The levels of `benchmark.leaderboard.LEVELS`.
LOOKS = {
    "trigger": Level("trigger", "trigger", "M-5.5-5.5h11v11h-11z"),
    "response": Level("response", "response", "M0-7.5 7.5 0 0 7.5-7.5 0z"),
    "first token": Level("first token", "first-token", "M0-7 7 5.5-7 5.5z"),
    "nothing": Level("nothing", "nothing", "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z"),
    "clean model": Level("clean model", "clean-model", "M0 7 7-5.5-7-5.5z"),
    "other models": Level("other models", "other-models", "M-7-5.5 7-5.5-7 5.5 7 5.5z"),
}
OTHER = "M-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z"


def level(knows: str) -> Level:
    """Of a defense; what a plug-in's may know has a mark of its own."""
    return LOOKS.get(knows) or Level(knows, "other", OTHER)


@dataclass(frozen=True, slots=True)
class CellRow:
    """A cell's row in the table of cells."""

    cell: Measured
    compared: str  # yes, no

    @property
    def file(self) -> str:
        """Name of its page. An id is a hash, but rows may come from anywhere."""
        known = re.fullmatch("[0-9a-f]{12}", self.cell.cell)
        return self.cell.cell if known else hashlib.sha256(self.cell.cell.encode()).hexdigest()[:12]

    @property
    def id(self) -> str:
        """Of its row in the page."""
        return f"cell-{self.file}"

    @property
    def case(self) -> str:
        """The victim and the setting."""
        return ", ".join(self.cell.label.split(", ")[:2])

    @property
    def rest(self) -> str:
        """Whatever else tells its case from others."""
        return ", ".join(self.cell.label.split(", ")[2:])

    def href(self, part: str) -> str:
        """Address of a part of its page, such as a metric."""
        return f"cells/{self.file}.html" + (f"#{quote(part)}" if part else "")


@dataclass(frozen=True, slots=True)
class StandingRow:
    """A defense's row in the standings."""

    standing: Standing
    id: str
    cells: Sequence[CellRow]  # behind its numbers
    submitted: bool

    @property
    def behind(self) -> str:
        """How many victims and seeds."""
        counts = ((self.standing.victims, "victim"), (self.standing.seeds, "seed"))
        return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)

    def href(self, part: str) -> str:
        """Address of what a number rests on: a part of the one cell's page, or the rows of all of them."""
        return self.cells[0].href(part) if len(self.cells) == 1 else f"#{self.cells[0].id}"


@dataclass(frozen=True, slots=True)
class Rung:
    """A level of the knowledge ladder: its best defense, and how that one stands against the first level's."""

    level: Level
    best: StandingRow
    others: list[str]
    asr_above: float
    loss_above: float


def rungs_of(rows: Sequence[StandingRow]) -> list[Rung]:
    """Levels of knowledge that some defense has, each with the defense that leaves the least of the backdoor."""
    row_of = {row.standing.defense: row for row in rows}
    levels = ladder(row.standing for row in rows)
    first, *_ = next(iter(levels.values()))
    return [
        Rung(
            level(name),
            row_of[best.defense],
            [other.defense for other in others],
            best.asr.value - first.asr.value,
            best.loss.value - first.loss.value,
        )
        for name, (best, *others) in levels.items()
    ]


@dataclass(frozen=True, slots=True)
class Tick:
    """A number at an axis, so many pixels from the left or from above."""

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
    said: str
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = ""  # of the label; empty where there is no room for one
    leader: bool = False


@dataclass(slots=True)
class Plot:
    """ASR against utility lost, laid out in pixels."""

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
    front: str = ""
    on_front: list[str] = field(default_factory=list)
    victim: Mapping[str, float] | None = None

    def x(self, loss: float) -> float:
        """Pixels from the left."""
        low, high = self.x_range
        return round(self.left + (loss - low) / (high - low) * (self.right - self.left), 1)

    def y(self, asr: float) -> float:
        """Pixels from above; a little room is left beyond 0 and 100 %."""
        return round(self.bottom - (asr + 5) / 110 * (self.bottom - self.top), 1)


def plot(made: Board, standings: Sequence[StandingRow]) -> Plot:
    """Lay out the points, the front and the axes, and find a place for each label."""
    from matplotlib.ticker import MaxNLocator

    losses = [0.0, *(row.standing.loss.value for row in standings)]
    room = 0.12 * (max(losses) - min(losses)) or 1.0
    drawn = Plot((min(losses) - room, max(losses) + room))
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(*drawn.x_range)
    inside = [float(tick) for tick in ticks if drawn.x_range[0] <= tick <= drawn.x_range[1]]
    drawn.x_ticks = [Tick(drawn.x(tick), f"{round(tick, 6):g}".replace("-", "−")) for tick in inside]
    drawn.y_ticks = [Tick(drawn.y(tick), str(tick)) for tick in range(0, 101, 20)]
    front = sorted((row.standing for row in standings if row.standing.front == 1), key=lambda one: one.loss.value)
    corners: list[tuple[float, float]] = []
    for one in front:
        at = drawn.x(one.loss.value), drawn.y(one.asr.value)
        corners += [(at[0], corners[-1][1]), at] if corners else [at]
    drawn.front = " ".join(f"{x},{y}" for x, y in corners)
    drawn.on_front = [one.defense for one in front]
    if made.victim_asr is not None:
        drawn.victim = {"x": drawn.x(0.0), "y": drawn.y(made.victim_asr)}
    drawn.points = _labelled([_point(drawn, row) for row in standings], drawn)
    return drawn


def _point(drawn: Plot, row: StandingRow) -> Point:
    one = row.standing
    x, y = drawn.x(one.loss.value), drawn.y(one.asr.value)
    whiskers = []
    if one.loss.low is not None and one.loss.high is not None:
        whiskers.append((drawn.x(one.loss.low), y, drawn.x(one.loss.high), y))
    if one.asr.low is not None and one.asr.high is not None:
        whiskers.append((x, drawn.y(one.asr.low), x, drawn.y(one.asr.high)))
    said = f"{one.defense}: {one.asr.value:.1f} % ASR left, {one.loss.value:+.2f} points of utility lost; {one.knows}"
    return Point(row, level(one.knows), x, y, whiskers, f"{said} known")


_WAYS = ((1, 0), (-1, 0), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7), (0, -1), (0, 1))


def _labelled(points: Sequence[Point], drawn: Plot) -> list[Point]:
    """Points with their labels, each as near as there is room without covering a mark or another label."""
    from dataclasses import replace

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


def write(
    made: Board,
    rows_of: Mapping[str, Mapping[str, Row]],
    samples_of: Mapping[str, Sequence[Row]],
    about: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
    command: str,
    out: Path,
    warned: Sequence[str] = (),
) -> None:
    """Write `index.html` and `cells/*.html`.

    Args:
        made: the leaderboard, with at least one standing.
        rows_of: result rows by cell and metric.
        samples_of: published outcomes by cell, as `benchmark.rows.OUTCOMES` has them.
        about: what is said of a submitted method, by cell.
        notes: what the numbers are, as Markdown.
        command: that made it.
        out: an existing folder.
        warned: what the first page begins with, as Markdown.
    """
    cells = [CellRow(one, "yes" if one.case in made.compared else "no") for one in made.cells]
    standings = []
    for index, one in enumerate(made.standings, 1):
        own = [row for row in cells if row.cell.defense == one.defense]
        behind = [row for row in own if row.compared == "yes"] or own
        standings.append(StandingRow(one, f"defense-{index}", behind, any(row.cell.cell in about for row in own)))
    labels = {row.cell.label: row.case for row in cells}
    several = Counter(labels.values())
    devices = dict.fromkeys(device for one in made.standings for device in one.seconds)
    devices |= dict.fromkeys(one.device for one in made.cells)
    rungs = rungs_of(standings)
    page = _environment().get_template("board.html.j2")
    text = page.render(
        made=made,
        standings=standings,
        cells=cells,
        alike={case for case, count in several.items() if count > 1},  # told apart by the rest of their labels
        levels=[rung.level for rung in rungs],
        ladder=rungs,
        plot=plot(made, standings),
        more=[{"name": metric, "label": more_label(metric)} for metric in made.more],
        devices=[{"name": device, "unit": unit(device)} for device in devices],
        summary=_summary(made),
        warned=_paragraphs(warned),
        notes=_paragraphs(notes),
        command=command,
    )
    shutil.rmtree(out / "cells", ignore_errors=True)  # those of an earlier leaderboard
    (out / "cells").mkdir()
    for row in cells:
        found, twin = rows_of[row.cell.cell], rows_of[row.cell.twin.cell] if row.cell.twin else {}
        samples = samples_of.get(row.cell.cell, ())
        write_atomically(out / row.href(""), _cell(row, found, twin, samples, about.get(row.cell.cell, {})))
    write_atomically(out / "index.html", text)


def _summary(made: Board) -> str:
    if not made.compared:
        return "No case was measured with every defense, so none is ranked, and each number is over its own cases."
    one = len(made.shared) == 1
    return (
        f"Every number is a mean over the {'one case' if one else f'{len(made.shared)} cases'} that all defenses were "
        f"measured on."
    )


def _cell(
    row: CellRow,
    found: Mapping[str, Row],
    twin: Mapping[str, Row],
    samples: Iterable[Row],
    about: Mapping[str, str],
) -> str:
    measured = [one for one in found.values() if one["value"] is not None]
    shown: dict[str, list[Row]] = {}
    for sample in samples:
        kept = shown.setdefault(sample["metric"], [])
        if len(kept) < SAMPLES:
            kept.append({**sample, "record": _record(sample["record"])})
    first = found["asr"]
    return (
        _environment()
        .get_template("cell.html.j2")
        .render(
            row=row,
            first=first,
            twin=twin,
            about=about,
            measurements=[
                {"row": one, "number": Number(one["value"], one["ci_low"], one["ci_high"])} for one in measured
            ],
            samples=shown,
            settings=json.dumps(json.loads(first["settings"]), indent=1, ensure_ascii=False),
        )
    )


def _record(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {"record": value}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("benchmark", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = (resources.files("benchmark").joinpath("page", name).read_text("utf-8") for name in _OWN)
    made.globals |= {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}  # noqa: S704
    return made


_OWN = ("style.css", "script.js")


def _policy(style: str, script: str) -> str:
    """What the page may load and run: its own style and script, by their hashes, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _paragraphs(notes: Sequence[str]) -> Markup:
    """The notes' Markdown, of which they use paragraphs, lists, `code` and **strong** alone, as HTML."""
    from markupsafe import Markup, escape

    parts: list[str] = []
    for note in notes:
        text = re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(note.removeprefix("- "))))
        text = re.sub(r"\*\*(.*?)\*\*", r"<strong>\1</strong>", text)
        if note.startswith("- "):
            parts.append(f"<li>{text}</li>")
        elif note:
            parts.append(f"<p>{text}</p>")
    folded = r"<details><summary>Which cases</summary><ul>\1</ul></details>"
    return Markup(re.sub(r"((?:<li>.*?</li>)+)", folded, "".join(parts), flags=re.DOTALL))  # noqa: S704
