"""Print the cells of a plan, with the settings in which they differ, as a table that fits the terminal.

Where the table is too wide, settings that all cells share move into one sentence above it, then cell names are
shortened as far as they stay distinct, and at last long values are folded at their joints.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmark.cli import distinctions
from benchmark.grid.cell import NO_DEFENSE, SEEDS, Cell
from benchmark.io.text import visible
from benchmark.plan.plan import Plan, stages_of

NARROW = 80  # columns of sentences in a pipe or file
LEAST = 40  # columns, even of a narrower terminal
UNFOLDED = 100_000  # columns of a table in a pipe or file, where each row is one line
MANY = 200  # cells; of more, a terminal shows only the first
SOME = 100  # number of cells that a terminal then shows
SHORT = 7  # least characters of a cell's name
SAMPLE = 200  # rows by which the widths of columns are chosen
NAME, TO_RUN = "cell", "to run"  # heads
_GAP = "  "
_ALL = {"all": "everything", "–": "nothing"}
# A value may be folded behind a space and behind the joints of names and settings, but not inside a number.
_JOINTS = re.compile(r"(?<= )|(?<=[_/=+])|(?<=-)(?<!\de-)(?<!=-)|(?<=[a-z]\.)(?=[a-z])")

Columns = Mapping[str, Sequence[str]]


class Table(NamedTuple):
    """Table of the cells of a plan.

    Attributes:
        columns: equally many values for each head.
        notes: sentences on what the values leave out, or stand for.
    """

    columns: dict[str, list[str]]
    notes: list[str]


def width() -> int:
    """Return the columns of the terminal, or of COLUMNS; 80 in a pipe or file."""
    return max(LEAST, shutil.get_terminal_size((NARROW, 24)).columns)


def room() -> int:
    """Return the columns of a table: those of the terminal; in a pipe or file, each row is one line."""
    return width() if sys.stdout.isatty() else UNFOLDED


def folded(text: str, columns: int, indent: str = "") -> str:
    """Return a text in lines of at most `columns` columns; no word, such as a path, is cut."""
    return textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def show(plan: Plan, title: str, parts: Mapping[str, Sequence[str]] | None = None) -> None:
    """Print the cells as a table; of very many cells, a terminal gets the first, and a file or pipe all.

    Args:
        plan: plan of a grid.
        title: line above the table.
        parts: names of the grids of a union that have a cell, by cell id.
    """
    made = table(plan, parts or {})
    few = len(plan.cells) <= MANY or not sys.stdout.isatty()
    lines = [folded(visible(title), width()), ""]
    for note in made.notes:
        lines += [folded(visible(note), width(), _GAP), ""]
    lines += [*layout(shown(made.columns), room(), None if few else SOME), ""]
    if not few:
        more = f"… and {len(plan.cells) - SOME} more cells; a file or a pipe, such as | less, shows all of them"
        lines += [folded(more, width()), ""]
    sys.stdout.write("\n".join([*lines, ""]))


def shown(columns: Columns) -> dict[str, list[str]]:
    """Return the columns with every value on one line, without control characters."""
    return {head: list(map(visible, values)) for head, values in columns.items()}


def table(plan: Plan, parts: Mapping[str, Sequence[str]]) -> Table:
    """Return the columns of the table, without those that are empty."""
    cells = plan.cells
    grids = _grids([tuple(parts.get(cell.id, ())) for cell in cells])
    differs, notes = distinctions.condensed(*distinctions.of(cells, grids))
    columns = {
        NAME: [cell.id for cell in cells],
        "grid": grids,
        "model": [cell.model.rstrip("/").split("/")[-1] for cell in cells],
        **_data(cells),
        "defense": [cell.defense.name for cell in cells],
        **_seeds(cells),
        TO_RUN: [_to_run(cell, plan) for cell in cells] if plan.done else ["all"] * len(cells),
        "differs in": differs,
    }
    return Table({head: values for head, values in columns.items() if any(values)}, notes)


def _seeds(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns of the seeds: one where both are equal in every cell."""
    attack, defense = ([str(getattr(cell, name)) for cell in cells] for name in SEEDS)
    return {"seed": attack} if attack == defense else {"attack seed": attack, "defense seed": defense}


def _data(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns of the data sets: one where every removal is in the victim's domain, or there is none."""
    data = [cell.data.name for cell in cells]
    removal = [cell.removal.name if cell.defense.name != NO_DEFENSE else "" for cell in cells]
    if any(name not in ("", of_victim) for name, of_victim in zip(removal, data, strict=True)):
        return {"data": data, "removal": [name or "–" for name in removal]}
    return {"data and removal" if any(removal) else "data": data}


def _grids(of_cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the grids of each cell, without the words that all their names begin with; nothing for a single grid."""
    if len(set(of_cells)) < 2:
        return [""] * len(of_cells)
    words = [name.split("_") for names in set(of_cells) for name in names]
    shared = 0
    while all(each[shared + 1 :] and each[shared] == words[0][shared] and each[shared + 1].isalpha() for each in words):
        shared += 1
    return [", ".join("_".join(name.split("_")[shared:]) for name in names) for names in of_cells]


def _to_run(cell: Cell, plan: Plan) -> str:
    stages = stages_of(cell)
    left = [stage.kind for stage in stages if stage.key not in plan.done]
    return "all" if len(left) == len(stages) else ", ".join(dict.fromkeys(left)) or "–"


def layout(columns: Columns, room: int, most: int | None = None) -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        columns: equally many values for each head.
        room: columns of the terminal.
        most: number of rows, the first ones; None: all.
    """
    shown: dict[str, Sequence[str]] = dict(columns)
    if not _fits(shown, room) and len(columns[NAME]) > 1:
        shared = {head: values[0] for head, values in columns.items() if len(set(values)) == 1}
        shown = {head: values for head, values in columns.items() if head not in shared}
        if shared:
            values_of_all = ", ".join(_in_words(head, value) for head, value in shared.items())
            yield from folded(f"Every cell: {values_of_all}", room, _GAP).splitlines()
            yield ""
    if not _fits(shown, room):
        shown[NAME] = _short_names(shown[NAME])
    yield from fitted(shown, room, most)


def fitted(shown: Columns, room: int, most: int | None = None) -> Iterator[str]:
    """Yield the lines of a table with a head; values that have no room in their column are folded at their joints.

    Args:
        shown: equally many values for each head.
        room: columns of the terminal.
        most: number of rows, the first ones; None: all.
    """
    natural = [_natural(head, values) for head, values in shown.items()]
    if not _fits(shown, room):
        least = [max(_least(value) for value in {head, *values}) for head, values in shown.items()]
        rows = [tuple(map(len, row)) for row in zip(*shown.values(), strict=True)]
        widths = _widths(natural, least, room - len(_GAP) * (len(shown) - 1), rows[:most][:SAMPLE])
    else:
        widths = natural
    yield from _row(list(shown), widths)
    yield _GAP.join("─" * each for each in widths)
    for row in list(zip(*shown.values(), strict=True))[:most]:
        yield from _row(row, widths)


def _in_words(head: str, value: str) -> str:
    """Return in words a value that every cell has."""
    return f"{_ALL.get(value, value)} to run" if head == TO_RUN else f"{head} {value}"


def _fits(columns: Columns, room: int) -> bool:
    return sum(_natural(*each) + len(_GAP) for each in columns.items()) - len(_GAP) <= room


def _natural(head: str, values: Sequence[str]) -> int:
    return max(len(head), max(map(len, values), default=0))


def _short_names(names: Sequence[str]) -> list[str]:
    """Return names cut to the shortest length at which they differ; commands that take a name accept them."""
    alike = max((len(_shared(*pair)) for pair in pairwise(sorted(set(names)))), default=0)
    return [name[: max(SHORT, alike + 1)] for name in names]


def _shared(one: str, other: str) -> str:
    number = next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[:number]


def _least(value: str) -> int:
    return max(len(part.rstrip()) for part in _JOINTS.split(value))


def _widths(natural: Sequence[int], least: Sequence[int], room: int, rows: Sequence[Sequence[int]] = ()) -> list[int]:
    """Return widths of columns that add up to at most `room`: those with which the rows take fewest lines.

    Every column has at least its longest part, where that leaves room, and at most its natural width. Room is given
    out piece by piece, to the column that saves most lines; then to that with most text.

    Args:
        natural: widths at which nothing is folded.
        least: lengths of the longest parts that are not folded.
        room: columns for all together.
        rows: lengths of the values.
    """
    widths = [max(1, min(low, high)) for low, high in zip(least, natural, strict=True)]
    if sum(widths) > room:  # then parts are cut as well
        widths = [1] * len(natural)
    text = [sum(row[number] for row in rows) for number in range(len(natural))]

    def lines(changed: Sequence[int]) -> int:
        return sum(max(-(-length // width) for length, width in zip(row, changed, strict=True)) for row in rows)

    while sum(widths) < room and (growing := [n for n, width in enumerate(widths) if width < natural[n]]):
        wider = {number: [*widths[:number], widths[number] + 1, *widths[number + 1 :]] for number in growing}
        best = min(growing, key=lambda number: (lines(wider[number]), -text[number] / widths[number]))
        widths = wider[best]
    return widths


def _row(values: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a row; values wider than their column continue in the next line."""
    if all(len(value) <= each for value, each in zip(values, widths, strict=True)):
        lines: Iterable[Sequence[str]] = [values]
    else:
        pieces = [_pieces(value, each) for value, each in zip(values, widths, strict=True)]
        height = max(map(len, pieces))
        lines = zip(*(each + [""] * (height - len(each)) for each in pieces), strict=True)
    for line in lines:
        yield _GAP.join(value.ljust(each) for value, each in zip(line, widths, strict=True)).rstrip()


def _pieces(value: str, columns: int) -> list[str]:
    """Return a value in pieces of at most `columns` characters; a word that does not fit is cut at a joint."""
    pieces = [""]
    for word in re.split("(?<= )", value):
        for part in [word] if len(word.rstrip()) <= columns else _JOINTS.split(word):
            if pieces[-1] and len(pieces[-1]) + len(part.rstrip()) > columns:
                pieces.append("")
            pieces[-1] += part
            while len(pieces[-1].rstrip()) > columns:
                pieces[-1:] = [pieces[-1][:columns], pieces[-1][columns:]]
    return [piece.rstrip() for piece in pieces]
