"""`sande-bench join`: results of a grid that ran in parts, as if it had run at once.

Each machine of a team runs some seeds with `--only`, or a part is published before the rest is done. The parts need no
common store: rows and outcomes say all that pages are made from.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.execution.provenance import code_version
from benchmark.grid import rules
from benchmark.grid.cell import DEFAULTS, SEED
from benchmark.io import yaml
from benchmark.io.units import counted, joined
from benchmark.records import erratum, files, mark, published, record
from benchmark.records.schema import NOT_RUN, OUTCOMES, SCHEMA
from sande.errors import UserError

_SUFFIX = "--"  # what follows names the options of a part, see `benchmark.grid.variants`
_SAME = ("metric", "value", "started_at")  # of a measurement that two parts took from one store
_LEAVE_OUT = "--leave-out"
_SETTING = "setting"  # a column of the rows that is not one of the settings
# Columns by which a reader tells parts apart, with their names in words; the first that does is named.
_APART = {
    "attack_seed": "attack seed",
    "defense_seed": "defense seed",
    "model": "model",
    "dataset": "data set",
    "removal_dataset": "removal data set",
    "attack": "attack",
    "defense": "defense",
}


def join(folders: Sequence[Path], to: Path, leave_out: Sequence[str] = (), places: Sequence[str] = ()) -> list[str]:
    """Write the rows and outcomes of several results folders into one, with its pages.

    Args:
        folders: results of parts of one grid. Tables list defenses in the order in which the parts have them.
        to: folder for the joined results.
        leave_out: `path=value`; leaves out the cells that have, at every path, one of the values given for it. Some
            cell of the parts has each value.
        places: names of the folders for people, where they are copies of URIs.

    Returns:
        The tables as Markdown.

    Raises:
        UserError: there is no part; parts are of different grids, or of a search; a part is unfinished; two parts
            measured a cell differently; no cell is to be left out, or every cell is; or the folder holds results of
            another grid, or cannot be written.
    """
    from benchmark.report import page

    published.refuse_published(to, "--out")
    if not folders:
        raise UserError("join: no folder is given; choose the results of at least one part")
    if os.path.realpath(to) in map(os.path.realpath, folders):  # unlike `resolve`, it takes links in a circle
        raise UserError(f"--out {to}: the folder is one of the parts; choose a new one")
    tables, outcomes_of = zip(*map(_results, folders), strict=True)
    name = _common(folders, tables)
    _refuse_other(to, name)
    wanted, without = _without(tables, leave_out)
    left = [table.filter(pc.invert(pc.is_in(table["cell"], taken))) for table, taken in _taken(folders, wanted)]
    rows = pa.concat_tables(left)
    rows = rows.set_column(0, "grid", pa.array([name] * len(rows)))
    rows = rows.set_column(1, "grids", pa.array([_renamed(names, name) for names in rows["grids"].to_pylist()]))
    kept = [pc.unique(table["cell"]) for table in left]
    outcomes = [
        table.cast(OUTCOMES).filter(pc.is_in(table["cell"], cells))
        for table, cells in zip(outcomes_of, kept, strict=True)
    ]
    mark.claim(to, mark.RESULTS, "--out")
    files.check_writable(to, "--out")
    files.write_both([rows.cast(SCHEMA)], outcomes, to)
    shown = list(places or map(str, folders))
    records = [_record(folder, table) for folder, table in zip(folders, tables, strict=True)]
    commands = [command for made in records for command in made.command.split(record.THEN)]
    if leave_out:
        options = [word for text in leave_out for word in (_LEAVE_OUT, text)]
        commands.append(shlex.join(["sande-bench", "join", *shown, *options, "--out", str(to)]))
    made = record.now(record.THEN.join(dict.fromkeys(commands)), code_version(), complete=True)
    earlier = _with_part([list(made.left_out) for made in records], shown, wanted)
    record.write(replace(made, left_out=(*earlier, *without)), to)
    erratum.write_all(_with_part(list(map(erratum.read_all, folders)), shown, wanted), to)
    return page.write(to)


def _results(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Return the rows of a part, with plain strings, and its outcomes."""
    table, outcomes = files.read_results(folder)
    if left := len(pc.unique(table["cell"].filter(pc.equal(table["status"], NOT_RUN)))):
        raise UserError(
            f"{folder}: {left} of its cells are unfinished; run its grid again, and join it once all are done"
        )
    if table["searched"].null_count < len(table):
        raise UserError(
            f"{folder}: its settings were searched, and parts of a search cannot be joined; run it as a whole"
        )
    return table.cast(SCHEMA), outcomes


def _common(folders: Sequence[Path], tables: Sequence[pa.Table]) -> str:
    """Return the name of the grid that all are parts of."""
    of_first: tuple[str, object, object] | None = None
    for folder, table in zip(folders, tables, strict=True):
        row = table.slice(0, 1).to_pylist()[0]
        of_this = row["grid"].partition(_SUFFIX)[0], row["scale"], row["held_out"]
        of_first = of_first or of_this
        for what, first, this in zip(("grid", "scale", "held-out secret"), of_first, of_this, strict=True):
            if first != this:
                raise UserError(
                    f"{folder}: its {what} is {this or 'none'}, that of {folders[0]} is {first or 'none'}; "
                    "join parts of one grid"
                )
    assert of_first
    return of_first[0]


def _refuse_other(to: Path, name: str) -> None:
    """Refuse to replace readable rows of anything but this grid."""
    try:
        grids = pc.unique(files.read_rows(to)["grid"]).to_pylist()
    except UserError:  # there are none, or they are damaged
        return
    if other := next((grid for grid in grids if grid != name), None):
        raise UserError(f"--out {to}: holds results of '{other}'; choose another folder")


def _taken(folders: Sequence[Path], tables: Sequence[pa.Table]) -> list[tuple[pa.Table, pa.Array]]:
    """Return each table with the cells that an earlier one has already.

    Raises:
        UserError: two parts have other measurements of a cell.
    """
    owner: dict[str, int] = {}
    found = []
    for number, table in enumerate(tables):
        cells = pc.unique(table["cell"]).to_pylist()
        again = [cell for cell in cells if cell in owner]
        for cell in again:
            if _measured(table, cell) != _measured(tables[owner[cell]], cell):
                raise UserError(
                    f"{folders[number]}: {folders[owner[cell]]} measured its cell {cell} differently; leave one "
                    "of the two out, or run the parts with --only so that no cell is in both"
                )
        owner |= dict.fromkeys((cell for cell in cells if cell not in owner), number)
        found.append((table, pa.array(again, pa.string())))
    return found


def _measured(table: pa.Table, cell: str) -> list[tuple[object, ...]]:
    rows = table.filter(pc.equal(table["cell"], cell)).select(_SAME).to_pylist()
    return sorted(tuple(map(str, row.values())) for row in rows)


def _renamed(names: Sequence[str], name: str) -> list[str]:
    """Return the grids of a row: without a part's options where it is the grid itself."""
    return list(dict.fromkeys(name if each.partition(_SUFFIX)[0] == name else each for each in names))


def _record(folder: Path, table: pa.Table) -> record.Record:
    return record.read(folder) or record.derived(table.slice(0, 1).to_pylist()[0])


def _without(tables: Sequence[pa.Table], leave_out: Sequence[str]) -> tuple[list[pa.Table], list[str]]:
    """Return the tables without the cells to leave out, and what was left out, in words."""
    wanted: dict[str, list[Any]] = {}
    for text in leave_out:
        path, value = _assignment(text)
        wanted.setdefault(path, []).append(value)
    if not wanted:
        return list(tables), []
    settings = {row["cell"]: row for table in tables for row in _settings(table)}
    has = {path: {cell for cell, row in settings.items() if _values(row, path)} for path in wanted}
    if unknown := next((path for path, cells in has.items() if not cells), None):
        valid = ", ".join(sorted([*DEFAULTS, SEED, _SETTING]))
        raise UserError(f"{_LEAVE_OUT} {unknown}: no cell has that field; use a path that begins with one of: {valid}")
    matching = [cell for cell, row in settings.items() if _matches(row, wanted)]
    alone = (_assignment(text) for text in leave_out)
    missed = [
        text
        for text, (path, value) in zip(leave_out, alone, strict=True)
        if not any(_matches(row, {path: [value]}) for row in settings.values())
    ]
    if missed or not matching:
        options = " ".join(f"{_LEAVE_OUT} {text}" for text in missed or leave_out)
        raise UserError(f"join: no cell of the parts matches {options}; use values that one cell has")
    if len(matching) == len(settings):
        raise UserError(f"join: every cell of the parts matches {_LEAVE_OUT}; add a path, so that some stay")
    words = [f"{path}={' or '.join(map(str, values))}" for path, values in wanted.items()]
    out = pa.array(matching, pa.string())
    return (
        [table.filter(pc.invert(pc.is_in(table["cell"], out))) for table in tables],
        [f"the cells with {joined(words)}, {counted(len(matching), 'cell')}"],
    )


def _assignment(text: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise UserError(f"{_LEAVE_OUT} '{text}': expected path.to.field=value")
    return path.strip(), yaml.parse(value, f"{_LEAVE_OUT} '{text}'")


def _settings(table: pa.Table) -> list[dict[str, Any]]:
    """Return the settings of each cell of a table, with `cell` and `setting`."""
    rows = table.select(["cell", _SETTING, "settings"])
    distinct = rows.group_by(rows.column_names).aggregate([]).to_pylist()
    return [{**json.loads(row["settings"]), "cell": row["cell"], _SETTING: row[_SETTING]} for row in distinct]


def _values(settings: Mapping[str, Any], path: str) -> list[Any]:
    """Return the values of a cell at a path; none where its method lacks the setting."""
    if path == _SETTING:
        return [settings[_SETTING]]
    return rules.values_at(settings, path) if path.split(".")[0] in {*DEFAULTS, SEED} else []


def _matches(settings: Mapping[str, Any], wanted: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether a cell has one of the values at every path, as a value or, like a name of digits, as its text."""
    return all(
        any(value in values or str(value) in map(str, values) for value in _values(settings, path))
        for path, values in wanted.items()
    )


def _with_part(texts: Sequence[Sequence[str]], shown: Sequence[str], tables: Sequence[pa.Table]) -> list[str]:
    """Return the texts of all parts, each once, with the parts that it is of; a text of all parts is of the whole.

    Args:
        texts: of each part. Those of a part without rows are left out.
        shown: names of the parts for people.
        tables: rows of the parts.
    """
    there = [number for number, table in enumerate(tables) if len(table)]
    owners: dict[str, list[int]] = {}
    for number in there:
        for text in dict.fromkeys(texts[number]):
            owners.setdefault(text, []).append(number)
    return [
        _of(text, numbers, [number for number in there if number not in numbers], shown, tables)
        for text, numbers in owners.items()
    ]


def _of(text: str, own: Sequence[int], others: Sequence[int], shown: Sequence[str], tables: Sequence[pa.Table]) -> str:
    """Return a text that begins with the parts that it is of, named by what sets them apart from the others."""
    if not others:
        return text
    for column, noun in _APART.items():
        here, there = (
            {value for number in numbers for value in pc.unique(tables[number][column]).to_pylist()}
            for numbers in (own, others)
        )
        if here & there or None in here | there:
            continue
        if text.startswith((f"Of {noun} ", f"Of {noun}s ")):  # of a part of that part, which was joined before
            return text
        return f"Of {noun}{'s' if len(here) > 1 else ''} {joined(list(map(str, sorted(here))))}: {text}"
    names = [Path(place).name for place in shown]
    named = names if len(set(names)) == len(names) else shown
    return f"Of {joined([named[number] for number in own])}: {text}"
