"""Print the cells of a plan, with the settings in which they differ, as a table that fits the terminal.

Where the table is too wide, settings that all cells share move into one sentence above it, then cell names are
shortened as far as they stay distinct, and at last long values are folded at their joints.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmark.forecast.cost import measured
from benchmark.grid import labels, prompt_format
from benchmark.grid.cell import SEEDS, Cell, Method
from benchmark.io.text import visible
from benchmark.plan.plan import Plan, stages_of
from sande import registry
from sande.config import PUBLISHED, as_dict, published

NARROW = 80  # columns of a pipe or file
LEAST = 40  # columns, even of a narrower terminal
MANY = 200  # cells; of more, a terminal shows only the first
SOME = 100  # number of cells that a terminal then shows
SHORT = 7  # least characters of a cell's name
NAME, TO_RUN = "cell", "to run"  # heads
_GAP = "  "
_ALL = {"all": "everything", "–": "nothing"}
# Sections of a cell, each with a key that equal ones share.
_SECTIONS: dict[str, Callable[[Cell], Hashable]] = {
    "attack": lambda cell: cell.attack.text,
    "data": lambda cell: cell.data,
    "defense": lambda cell: cell.defense.text,
    "removal": lambda cell: cell.removal,
}
# A value may be folded behind a space and behind the joints of names and settings, but not inside a number.
_JOINTS = re.compile(r"(?<= )|(?<=[_/=+])|(?<=-)(?<!\de-)(?<!=-)|(?<=[a-z]\.)(?=[a-z])")

Columns = Mapping[str, Sequence[str]]
MetricTexts = tuple[str, ...]  # the settings of each of a cell's metrics, as JSON


def width() -> int:
    """Return the columns of the terminal, or of COLUMNS; 80 in a pipe or file."""
    return max(LEAST, shutil.get_terminal_size((NARROW, 24)).columns)


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
    columns = shown(table(plan, parts or {}))
    few = len(plan.cells) <= MANY or not sys.stdout.isatty()
    lines = [folded(visible(title), width()), "", *layout(columns, width(), None if few else SOME), ""]
    if not few:
        more = f"… and {len(plan.cells) - SOME} more cells; a file or a pipe, such as | less, shows all of them"
        lines += [folded(more, width()), ""]
    sys.stdout.write("\n".join([*lines, ""]))


def shown(columns: Columns) -> dict[str, list[str]]:
    """Return the columns with every value on one line, without control characters."""
    return {head: list(map(visible, values)) for head, values in columns.items()}


def table(plan: Plan, parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the columns of the table by their heads, without columns that are empty."""
    cells = plan.cells
    grids = _grids([tuple(parts.get(cell.id, ())) for cell in cells])
    columns = {
        NAME: [cell.id for cell in cells],
        "grid": grids,
        "model": [cell.model.rstrip("/").split("/")[-1] for cell in cells],
        **_data(cells),
        "defense": [cell.defense.name for cell in cells],
        **_seeds(cells),
        TO_RUN: [_to_run(cell, plan) for cell in cells] if plan.done else ["all"] * len(cells),
        "differs in": distinctions(cells, grids),
    }
    return {head: values for head, values in columns.items() if any(values)}


def _seeds(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns of the seeds: one where both are equal in every cell."""
    attack, defense = ([str(getattr(cell, name)) for cell in cells] for name in SEEDS)
    return {"seed": attack} if attack == defense else {"attack seed": attack, "defense seed": defense}


def _data(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the columns of the data sets: one where every removal is in the victim's domain."""
    data, removal = [cell.data.name for cell in cells], [cell.removal.name for cell in cells]
    return {"data and removal": data} if data == removal else {"data": data, "removal": removal}


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
        widths = _widths(natural, least, room - len(_GAP) * (len(shown) - 1))
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


def _widths(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return widths of columns that add up to `room`: wide columns shrink first, none below its longest part."""

    def capped(cap: int) -> list[int]:
        return [max(low, min(high, cap)) for low, high in zip(least, natural, strict=True)]

    if sum(least) > room:  # then parts are cut as well
        least = [1] * len(natural)
    cap = max(natural)
    while cap > 1 and sum(capped(cap)) > room:
        cap -= 1
    widths = capped(cap)
    for number, high in enumerate(natural):
        widths[number] += min(high - widths[number], max(0, room - sum(widths)))
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


def distinctions(cells: Sequence[Cell], grids: Sequence[str] | None = None) -> list[str]:
    """Return for each cell the settings in which cells of the same model, data sets and defense differ.

    Args:
        cells: cells of a plan.
        grids: grids of each cell, where the table shows them; metrics are then compared only within a grid.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, cell in enumerate(cells):
        group = cell.model, cell.data.name, cell.removal.name, cell.defense.name
        alike.setdefault(group, []).append(number)
    found = [""] * len(cells)
    for numbers in alike.values():
        within = [grids[number] for number in numbers] if grids else [""] * len(numbers)
        for number, differs in zip(numbers, _differences([cells[number] for number in numbers], within), strict=True):
            found[number] = differs
    return found


def _differences(cells: Sequence[Cell], grids: Sequence[str]) -> Iterator[str]:
    """Yield for each cell its values of the settings that vary; where attacks do, without what their names imply."""
    settings = [cell.settings() for cell in cells]
    flat: dict[tuple[str, Hashable], dict[str, Any]] = {}  # each section once for all cells that share it
    varying: set[str] = set()
    for name, key_of in _SECTIONS.items():
        sections = {(name, key_of(cell)): values[name] for cell, values in zip(cells, settings, strict=True)}
        if len(sections) > 1:
            found = {key: _flat(name, section) for key, section in sections.items()}
            varying |= labels.varying(found.values())
            flat |= found
    short = labels.shorten(varying)
    implied = _implied(values for (name, _), values in flat.items() if name == "attack")
    words = {
        key: [
            values[path] if _is_name(path) else f"{short[path]}={values[path]}"
            for path in sorted(varying & set(values), key=_name_first)
            if (values.get("attack.name"), path, repr(values[path])) not in implied
        ]
        for key, values in flat.items()
    }
    floors, written = {cell.asr_floor for cell in cells}, {cell.prompt_format for cell in cells}
    lists: dict[str, dict[MetricTexts, Sequence[Method]]] = {}
    for cell, grid in zip(cells, grids, strict=True):
        lists.setdefault(grid, {})[_texts(cell)] = cell.metrics
    metrics = {grid: _metrics(each) for grid, each in lists.items()}
    for cell, grid in zip(cells, grids, strict=True):
        differs = [word for name, key_of in _SECTIONS.items() for word in words.get((name, key_of(cell)), ())]
        name = prompt_format.name_of(cell.prompt_format)
        differs += [f"{prompt_format.SETTING}={name}"] if len(written) > 1 else []
        differs += [f"asr_floor={cell.asr_floor:g}"] if len(floors) > 1 else []
        differs += [metrics[grid][_texts(cell)]] if metrics[grid] else []
        yield ", ".join(differs)


def _implied(attacks: Iterable[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    """Return (name, path, value) of settings that an attack's name implies: its defaults, and what all of it share.

    Nothing where all attacks have one name, which no cell then shows.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for values in attacks:
        by_name.setdefault(values["attack.name"], []).append(values)
    found: set[tuple[str, str, str]] = set()
    for name, alike in by_name.items() if len(by_name) > 1 else ():
        default = _flat("attack", {"name": name, **as_dict(registry.config("attacks", name, {}))})
        shared = {path: alike[0][path] for path in alike[0].keys() - labels.varying(alike)}
        found |= {(name, path, repr(value)) for each in (default, shared) for path, value in each.items()}
    return {each for each in found if not _is_name(each[1])}


def _flat(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a section by path, without those that follow from a published recipe."""
    values = dict(labels.flatten(section, f"{name}."))
    if section.get("recipe") == PUBLISHED:
        for path in published(registry.entry(f"{name}s", section["name"]).Config):
            values.pop(f"{name}.{path}", None)
    return values


def _texts(cell: Cell) -> MetricTexts:
    return tuple(metric.text for metric in cell.metrics)


def _metrics(lists: Mapping[MetricTexts, Sequence[Method]]) -> dict[MetricTexts, str]:
    """Return for each list of metrics those that not all lists have; nothing where the lists are the same."""
    texts = {key: {metric.text: metric for metric in metrics} for key, metrics in lists.items()}
    if len({tuple(sorted(each)) for each in texts.values()}) < 2:
        return {}
    common = set.intersection(*(set(each) for each in texts.values()))
    named: dict[str, dict[str, dict[str, Any]]] = {}  # settings of metrics by name and text
    for each in texts.values():
        for text in set(each) - common:
            named.setdefault(measured(each[text])[0], {})[text] = dict(labels.flatten(json.loads(text)))
    texts_of: dict[str, str] = {}
    for name, alike in named.items():
        varying = sorted(labels.varying(alike.values()))
        for text, values in alike.items():
            within = ", ".join(f"{path}={values[path]}" for path in varying if path in values)
            texts_of[text] = f"{name}({within})" if within else name
    first = ["common"] if common else []
    return {
        key: f"metrics={'+'.join([*first, *(texts_of[text] for text in each if text not in common)])}"
        for key, each in texts.items()
    }


def _is_name(path: str) -> bool:
    return path.count(".") == 1 and path.endswith(".name")


def _name_first(path: str) -> tuple[bool, str]:
    return not _is_name(path), path
