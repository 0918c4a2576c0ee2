"""`sande-bench join`: results of a grid that ran in parts, as if it had run at once.

Each machine of a team runs some seeds with `--only`, or a part is published before the rest is done. The parts need no
common store: rows and outcomes say all that pages are made from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.execution.provenance import code_version
from benchmark.records import erratum, files, mark, published, record
from benchmark.records.schema import NOT_RUN, OUTCOMES, SCHEMA
from sande.errors import UserError

_SUFFIX = "--"  # what follows names the options of a part, see `benchmark.grid.variants`
_THEN = " && "  # between the commands of the parts
_SAME = ("metric", "value", "started_at")  # of a measurement that two parts took from one store


def join(folders: Sequence[Path], to: Path) -> list[str]:
    """Write the rows and outcomes of several results folders into one, with its pages.

    Args:
        folders: results of parts of one grid. Tables list defenses in the order in which the parts have them.
        to: folder for the joined results.

    Returns:
        The tables as Markdown.

    Raises:
        UserError: there is no part; parts are of different grids, or of a search; a part is unfinished; two parts
            measured a cell differently; or the folder holds results of another grid, or cannot be written.
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
    left = [table.filter(pc.invert(pc.is_in(table["cell"], taken))) for table, taken in _taken(folders, tables)]
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
    record.write(record.now(_commands(folders, tables), code_version(), complete=True), to)
    erratum.write(" ".join(map(erratum.read, folders)), to)
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


def _commands(folders: Sequence[Path], tables: Sequence[pa.Table]) -> str:
    """Return the commands of all parts, each once."""
    commands: list[str] = []
    for folder, table in zip(folders, tables, strict=True):
        made = record.read(folder) or record.derived(table.slice(0, 1).to_pylist()[0])
        commands += made.command.split(_THEN)
    return _THEN.join(dict.fromkeys(commands))
