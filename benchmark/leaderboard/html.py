"""The leaderboard as static pages: one with the tables and the plot, and one for each cell behind its numbers.

The pages need neither server nor network, and work from a file. Text from results is escaped, and the pages' policy
lets no script or style run but their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.io.files import write_atomically
from benchmark.leaderboard.board import Board, Number, Row, Run, by_level
from benchmark.leaderboard.markdown import UNVERIFIED, UTILITY
from benchmark.leaderboard.plot import CellRow, Level, StandingRow, level, plot
from benchmark.records.provenance import device_name
from sande import registry

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


_TEMPLATES = resources.files("benchmark.leaderboard") / "templates"
SAMPLES = 20  # published records of a metric that a cell's page shows


@dataclass(frozen=True, slots=True)
class Group:
    """A level of knowledge with its standings, or the unverified entries.

    Attributes:
        level: its look; None for the unverified.
        title: above its rows.
        rows: the best first.
    """

    level: Level | None
    title: str
    rows: Sequence[StandingRow]


def groups_of(rows: Sequence[StandingRow]) -> list[Group]:
    """Return the standings of each level, and at the end the unverified."""
    verified = [row for row in rows if row.standing.verified]
    of_level = {
        name: [row for row in verified if row.standing.knows == name]
        for name in by_level([row.standing for row in verified])
    }
    found = [Group(level(name), f"Must know: {name}", some) for name, some in of_level.items()]
    unverified = [row for row in rows if not row.standing.verified]
    return [*found, *([Group(None, "Unverified entries", unverified)] if unverified else [])]


def write(
    made: Board,
    rows_of: Mapping[str, Mapping[str, Row]],
    samples_of: Mapping[str, Sequence[Row]],
    about: Mapping[str, Mapping[str, str]],
    takeaways: Sequence[str],
    notes: Sequence[str],
    command: str,
    out: Path,
    warned: Sequence[str] = (),
) -> None:
    """Write `index.html` and `cells/*.html`.

    Args:
        made: the leaderboard, with at least one standing.
        rows_of: result rows by cell and metric.
        samples_of: published outcomes by cell, as `benchmark.records.schema.OUTCOMES` has them.
        about: facts about a submitted method, by cell.
        takeaways: what a reader takes away, as paragraphs of Markdown.
        notes: how to read the numbers, as lines of Markdown.
        command: that makes the pages.
        out: an empty folder.
        warned: lines at the top of every page, as Markdown.
    """
    cells = [CellRow(one, _compared(made, one)) for one in made.cells]
    standings = []
    for index, one in enumerate(made.standings, 1):
        own = [row for row in cells if (row.cell.defense, row.cell.verified) == (one.defense, one.verified)]
        behind = [row for row in own if row.compared == "yes"] or own
        standings.append(StandingRow(one, f"defense-{index}", behind, any(row.cell.cell in about for row in own)))
    labels = {row.cell.label: row.case for row in cells}
    several = Counter(labels.values())
    devices = dict.fromkeys(device for one in made.standings for device in one.seconds)
    devices |= dict.fromkeys(one.device for one in made.cells if not one.flaw)
    groups = groups_of(standings)
    page = _environment().get_template("board.html.j2")
    text = page.render(
        made=made,
        standings=standings,
        cells=cells,
        alike={case for case, count in several.items() if count > 1},  # distinguished by the rest of their labels
        groups=groups,
        levels=[level(name) for name in by_level(made.standings)],
        utility=UTILITY,
        unverified=UNVERIFIED,
        plot=plot(made, standings),
        quality=_columns(made.quality),
        more=_columns(metric for metric in made.more if metric not in made.quality),
        devices=list(devices),
        takeaways=_paragraphs(takeaways),
        warned=_paragraphs(warned),
        notes=_paragraphs(notes),
        command=command,
    )
    (out / "cells").mkdir()
    for row in cells:
        found, twin = rows_of[row.cell.cell], rows_of[row.cell.twin.cell] if row.cell.twin else {}
        samples = samples_of.get(row.cell.cell, ())
        write_atomically(out / row.href(""), _cell(row, found, twin, samples, about.get(row.cell.cell, {}), warned))
    write_atomically(out / "index.html", text)


def _columns(metrics: Iterable[str]) -> list[dict[str, str]]:
    return [{"name": metric, "label": registry.metric_info(metric).label} for metric in metrics]


def _compared(made: Board, run: Run) -> str:
    """Return whether a cell counts in the standings, as its row says it."""
    if not run.verified:
        return "unverified"
    return "yes" if run.attempted and (run.case, run.attack_seed) in made.compared else "no"


def _cell(
    row: CellRow,
    found: Mapping[str, Row],
    twin: Mapping[str, Row],
    samples: Iterable[Row],
    about: Mapping[str, str],
    warned: Sequence[str],
) -> str:
    measured = [one for one in found.values() if one["value"] is not None]
    shown: dict[str, list[Row]] = {}
    for sample in samples:
        kept = shown.setdefault(sample["metric"], [])
        if len(kept) < SAMPLES:
            kept.append({**sample, "record": _record(sample["record"])})
    first = found.get("asr") or next(iter(found.values()))
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
            warned=_paragraphs(warned),
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
        loader=PackageLoader("benchmark.leaderboard", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style, script = (_TEMPLATES.joinpath(name).read_text("utf-8") for name in ("style.css", "script.js"))
    made.globals |= {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}  # noqa: S704
    made.globals["device_name"] = device_name
    return made


def _policy(style: str, script: str) -> str:
    """Return a policy under which a page may load and run its own style and script, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _paragraphs(notes: Sequence[str]) -> Markup:
    """Return lines of Markdown as HTML; lists are folded up. Links, images and HTML stay text: labels may hold any."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    blocks = [note if note.startswith("- ") else f"\n{note}\n" for note in notes if note]
    text = MarkdownIt("zero").enable(["list", "backticks", "emphasis", "escape"]).render("\n".join(blocks))
    folded = text.replace("<ul>", "<details><summary>Which cases</summary><ul>").replace("</ul>", "</ul></details>")
    return Markup(folded)  # noqa: S704
