"""The cells of a plan, a line each: which they are, what tells them apart, and how far each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.cell import Cell
from benchmark.plan import Plan, stages_of

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("cell", "model", "data", "removal", "defense", "seed", "attack", "defend", "evaluate", "differs in")
WIDE = 200  # columns of a table that goes into a file or a pipe
MANY = 200  # cells, from which on a table is no longer something to look at as a whole
SOME = 100  # cells of so many that a terminal shows
_SECTIONS = ("attack", "data", "defense", "removal")


def show(plan: Plan, title: str) -> None:
    """Print the cells as a table.

    Of very many a terminal gets the first ones, and a file or pipe all of them, as plain lines.
    """
    from rich.console import Console

    terminal = Console().is_terminal
    console = Console() if terminal else Console(width=WIDE)
    lines = list(_lines(plan))
    if len(lines) <= MANY:
        _draw(console, title, lines)
    elif terminal:
        _draw(console, title, lines[:SOME])
        more = f"… and {len(lines) - SOME} more cells; a file or a pipe, such as | less, gets all of them"
        console.print(more, highlight=False)
    else:
        console.file.write("\n".join([title, *_aligned([COLUMNS, *lines]), ""]))


def _lines(plan: Plan) -> Iterator[tuple[str, ...]]:
    for cell, differs in zip(plan.cells, distinctions(plan.cells), strict=True):
        states = {stage.kind: "done" if stage.key in plan.done else "to run" for stage in stages_of(cell)}
        yield (
            cell.id,
            cell.model.rstrip("/").split("/")[-1],
            cell.data.name,
            cell.removal.name,
            cell.defense.name,
            str(cell.seed),
            *(states.get(kind, "–") for kind in ("attack", "defend", "evaluate")),
            differs,
        )


def _draw(console: Console, title: str, lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip()


def distinctions(cells: Sequence[Cell]) -> list[str]:
    """What tells each cell's settings from others of the same model, data sets and defense, its metrics aside."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, cell in enumerate(cells):
        group = cell.model, cell.data.name, cell.removal.name, cell.defense.name
        alike.setdefault(group, []).append(number)
    told = [""] * len(cells)
    for numbers in alike.values():
        for number, differs in zip(numbers, _told_apart([cells[number] for number in numbers]), strict=True):
            told[number] = differs
    return told


def _told_apart(cells: Sequence[Cell]) -> Iterator[str]:
    """For each of some cells, the settings in which they vary."""
    settings = [cell.settings() for cell in cells]
    flat: dict[int, dict[str, Any]] = {}  # by id of a section, which is looked into once for all cells that share it
    varying: set[str] = set()
    for name in _SECTIONS:
        sections = {id(values[name]): values[name] for values in settings}
        if len(sections) > 1:
            found = {key: dict(_flatten(section, f"{name}.")) for key, section in sections.items()}
            varying |= _varying(found.values())
            flat |= found
    short = _short(varying)
    words = {
        key: [f"{short[path]}={values[path]}" for path in sorted(varying & set(values))] for key, values in flat.items()
    }
    for values in settings:
        yield ", ".join(word for name in _SECTIONS for word in words.get(id(values[name]), ()))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _varying(settings: Iterable[Mapping[str, Any]]) -> set[str]:
    seen: dict[str, set[str]] = {}
    for values in settings:
        for path, value in values.items():
            seen.setdefault(path, set()).add(repr(value))
    return {path for path, distinct in seen.items() if len(distinct) > 1}


def _short(paths: Iterable[str]) -> dict[str, str]:
    """Paths without their first part, as far as that leaves them different."""
    tails = Counter(path.split(".", 1)[1] for path in paths)
    return {path: tail if tails[tail := path.split(".", 1)[1]] == 1 else path for path in paths}
