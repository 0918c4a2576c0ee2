"""Read and write rows and tables as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.grid import prompt_format
from benchmark.grid.cell import SEED, SEEDS
from benchmark.io.files import atomically, clear_parts, write_atomically
from benchmark.plan.failures import UNSCORABLE
from benchmark.records import checks
from benchmark.records.schema import (
    ATTACK_FAILED,
    DECODING,
    FAILED,
    NOT_RUN,
    OK,
    OUTCOME_GROUP,
    OUTCOMES,
    PROVENANCE,
    ROW_GROUP,
    SCHEMA,
    STAGES,
    Row,
)
from sande.errors import UserError

MOST_ROWS, MOST_OUTCOMES = 5_000_000, 50_000_000  # which take gigabytes; a grid has up to 100,000 cells
_TYPES = {field.name: field.type for field in (*SCHEMA, *OUTCOMES)}


def check_writable(folder: Path, option: str = "--results") -> None:
    """Create the folder and write into it, so that a run does not find out after hours that it cannot.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink(missing_ok=True)
        clear_parts(folder)
    except OSError as error:
        raise UserError(
            f"{option} {folder}: the folder cannot be written ({error.strerror}); choose another {option}"
        ) from None


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a table of `SCHEMA`.

    Raises:
        UserError: a value is of another type, which came from a manifest of another form, or a damaged one.
    """
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for row in rows:
            for name, value in row.items():
                try:
                    pa.scalar(value, _TYPES[name])
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    what = f"cell {row['cell']}: a manifest has {value!r:.60} as '{name}'"
                    raise UserError(f"{what}; remove the cell's artifacts from the store, and run again") from None
        raise


def write_rows(rows: Iterable[dict[str, Any]], outcomes: Iterable[pa.Table], folder: Path) -> int:
    """Write `rows.parquet` and `outcomes.parquet` as they come, as `write_both` does.

    Args:
        rows: of any number of cells.
        outcomes: of the same cells, in tables of schema `OUTCOMES`.
        folder: of the results.

    Returns:
        The number of cells that failed.
    """
    failed: set[str] = set()

    def tables() -> Iterator[pa.Table]:
        left = iter(rows)
        while some := list(islice(left, ROW_GROUP)):
            failed.update(row["cell"] for row in some if is_failed(row))
            yield table_of(some)

    write_both(tables(), outcomes, folder)
    return len(failed)


def write_both(rows: Iterable[pa.Table], outcomes: Iterable[pa.Table], folder: Path) -> None:
    """Write `rows.parquet` and `outcomes.parquet` as they come; replace none of them before both are on the disk.

    Args:
        rows: tables of schema `SCHEMA`.
        outcomes: tables of schema `OUTCOMES`, of the same cells.
        folder: of the results.
    """
    with atomically(folder / "outcomes.parquet") as second, atomically(folder / "rows.parquet") as first:
        _write(rows, SCHEMA, first, ROW_GROUP)
        _write(outcomes, OUTCOMES, second, OUTCOME_GROUP)
        second.flush()
        os.fsync(second.fileno())  # now, since the rows are in place before this block of the outcomes ends


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, group: int) -> None:
    """Write tables into one Parquet file as they come, atomically.

    Args:
        tables: of the schema.
        schema: of the file.
        path: of the file.
        group: number of rows from which a row group is written; memory holds at most these rows and one table.
    """
    with atomically(path) as file:
        _write(tables, schema, file, group)


def _write(tables: Iterable[pa.Table], schema: pa.Schema, file: BinaryIO, group: int) -> None:
    held, count = [schema.empty_table()], 0
    # A dictionary that grows over the limit is given up; under this one, a row group has each settings once.
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**26, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            held.append(table)
            count += table.num_rows
            if count >= group:
                writer.write_table(pa.concat_tables(held))
                held, count = [], 0
        if held:
            writer.write_table(pa.concat_tables(held))


def write_records(records: Sequence[Any], kind: type[Any], path: Path) -> None:
    """Write dataclasses of one kind, whose fields are text, numbers or None, as a Parquet file."""
    types = {"str": pa.string(), "float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    schema = pa.schema([(each.name, types[str(each.type).removesuffix(" | None")]) for each in fields(kind)])
    write_tables([pa.Table.from_pylist([asdict(each) for each in records], schema=schema)], schema, path, len(records))


def is_failed(row: Row) -> bool:
    """Return whether a row's cell failed; a measurement that cannot be scored under a guard fails no cell."""
    return bool(row["status"] == FAILED and row.get("failure") != UNSCORABLE)


def of_failed_cells(table: pa.Table) -> pa.ChunkedArray:
    """Return for each row what `is_failed` returns."""
    scored = pc.not_equal(pc.fill_null(table["failure"], ""), UNSCORABLE)
    return pc.and_(pc.equal(table["status"], FAILED), scored)


def _without_values(table: pa.Table) -> pa.ChunkedArray:
    """Return for each row whether it has no value, because its cell failed or was not run."""
    return pc.or_(pc.equal(table["status"], FAILED), pc.equal(table["status"], NOT_RUN))


def read_results(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Return the rows and the outcomes of a grid that was run.

    Raises:
        UserError: as `read_rows` and `read_outcomes`; or the outcomes are of other rows, so that tests and intervals
            would be of other results.
    """
    rows, outcomes = read_rows(folder), read_outcomes(folder)
    if other := checks.other_outcomes(rows, outcomes):
        raise UserError(
            f"{folder}: outcomes.parquet does not belong to rows.parquet ({other}); run its grid again, or remove "
            "outcomes.parquet"
        )
    return rows, outcomes


def read_outcomes(folder: Path) -> pa.Table:
    """Return the outcomes of a results folder, with strings as in `read_rows`; none if there is no such file.

    Raises:
        UserError: the file does not have this schema.
    """
    path = folder / "outcomes.parquet"
    if not path.is_file():
        return _encoded(OUTCOMES).empty_table()
    table = _read(path, OUTCOMES)
    shown = table.filter(pc.is_valid(table["record"]))
    if wrong := checks.odd_records(shown["metric"].to_pylist(), shown["record"].to_pylist()):
        raise UserError(f"{path}: the file is damaged ({wrong}); run its grid again to replace it")
    return table


def read_rows(folder: Path) -> pa.Table:
    """Return the rows of a grid that was run.

    Strings are dictionary-encoded: a million rows have few distinct strings, and settings take kilobytes.

    Raises:
        UserError: there are no rows, or the file does not have this schema.
    """
    path = folder / "rows.parquet"
    if not path.is_file():
        raise UserError(
            f"{folder}: no rows.parquet; choose the folder of a grid that was run, such as results/quickstart"
        )
    return read_file(path)


def read_file(path: Path) -> pa.Table:
    """Return the rows of one file, with strings as in `read_rows`.

    Raises:
        UserError: there are no rows, or the file does not have this schema.
    """
    table = _read(path, SCHEMA)
    if not table.num_rows:
        raise UserError(f"{path}: the file has no rows; run its grid again to replace it")
    if wrong := _wrong(table):
        raise UserError(f"{path}: the file is damaged ({wrong}); run its grid again to replace it")
    return table


def _wrong(table: pa.Table) -> str | None:
    """Return the first problem of the rows that their schema does not exclude, if any."""
    for name in ("grid", "cell", "status", *SEEDS, "defense", "metric", "settings"):
        if table[name].null_count:
            return f"column '{name}' has missing values"
    grids = pc.list_flatten(table["grids"]).unique().to_pylist()  # a report names its files after them
    if table["grids"].null_count or not all(name and Path(name).name == name for name in grids):
        return "column 'grids' has values that are not names"
    if unknown := set(pc.unique(table["status"]).to_pylist()) - {OK, ATTACK_FAILED, FAILED, NOT_RUN}:
        return f"column 'status' has the unknown value '{min(unknown)}'"
    done = table.filter(pc.invert(_without_values(table)))
    for name in ("value", "count"):
        if done[name].null_count:
            return f"column '{name}' has missing values"
    if not all(map(checks.is_settings, pc.unique(table["settings"]).to_pylist())):
        return "column 'settings' has values that are not settings of a cell"
    if not all(map(checks.is_certificate, pc.unique(table["certificate"].drop_null()).to_pylist())):
        return "column 'certificate' has values that are not certificates"
    return checks.odd_number(table)


def _encoded(schema: pa.Schema) -> pa.Schema:
    """Return the schema with its strings dictionary-encoded, except strings in lists."""
    encoded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(field.name, encoded if field.type == pa.string() else field.type) for field in schema])


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    strings = [field.name for field in schema if field.type == pa.string()]
    try:
        checks.check_size(path, MOST_OUTCOMES if schema is OUTCOMES else MOST_ROWS)
        table = _completed(pq.read_table(path, read_dictionary=strings, page_checksum_verification=True))
        return table.select(schema.names).cast(_encoded(schema)).combine_chunks()
    except PermissionError:
        raise UserError(f"{path}: no permission to read the file; make it readable") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path}: the file is damaged or of another version ({reason}); run its grid again to replace it"
        ) from None


def _completed(table: pa.Table) -> pa.Table:
    """Return the table with the columns that results of older versions lack."""
    if "grid" in table.column_names and "grids" not in table.column_names:
        table = table.append_column("grids", pa.array([[name] for name in table["grid"].to_pylist()]))
        for name in ("scale", "knows"):
            table = table.append_column(name, pa.array([""] * table.num_rows))
    for name, column in (("record", "cluster"), ("count", "clusters"), *(("count", each) for each in DECODING)):
        if name in table.column_names and column not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, _TYPES[column]))
    if SEED in table.column_names and "settings" in table.column_names:  # one seed decided attack and defense
        for name in SEEDS:
            table = table.append_column(name, table[SEED])
        number = table.column_names.index("settings")
        table = table.set_column(number, "settings", _each(table["settings"], _with_both_seeds))
    if "model" in table.column_names and prompt_format.SETTING not in table.column_names:
        table = table.append_column(prompt_format.SETTING, pa.array([prompt_format.PAPER] * table.num_rows))
    if "error" in table.column_names:
        lacking = dict.fromkeys(("failure", "searched", "held_out", "certificate", "objective", "sources"), pa.string())
        lacking |= {"unchanged_weights": pa.float64()}
        lacking |= {f"{stage}{n}": kind for stage in STAGES for n, kind in PROVENANCE.items()}
        for name, kind in lacking.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def _each(column: pa.ChunkedArray, change: Callable[[str], str]) -> pa.Array:
    """Return a column of strings with each distinct one changed once."""
    encoded = column.cast(pa.string()).dictionary_encode().combine_chunks()
    changed = pa.array([change(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return pa.DictionaryArray.from_arrays(encoded.indices, changed)


def _with_both_seeds(settings: str) -> str:
    """Return settings of a cell as JSON, with `attack_seed` and `defense_seed` in place of `seed`."""
    try:
        values = json.loads(settings)
    except (ValueError, RecursionError):
        return settings  # `_wrong` refuses it
    if not isinstance(values, dict) or SEED not in values:
        return settings
    seed = values.pop(SEED)
    return json.dumps(values | dict.fromkeys(SEEDS, seed), sort_keys=True)
