"""Check rows and outcomes, which anyone may have written, before anything reads them: sizes, numbers, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.grid import prompt_format
from benchmark.grid.cell import DEFAULTS
from benchmark.records.metrics import CASE_STUDY
from sande import bounds
from sande.errors import UserError

MOST_BYTES = 8 * 2**30  # of a file, unpacked
MOST_LISTED = 200_000  # rows that a command takes one by one, which has kilobytes for each
PERCENT = ("value", "ci_low", "ci_high", "victim_value", "victim_asr", "unchanged_weights")
ROUNDING = 1e-6  # percentage points


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class _Round(_Part):
    round: int
    evidence: float
    controls: Annotated[list[float], Field(min_length=1)]
    fresh: list[float]


class _Certificate(_Part):
    """What is read of a certificate, see `sande.certificate`."""

    removed: bool
    p: float
    alpha: float
    prompts: int
    controls: int
    rounds: Annotated[list[_Round], Field(min_length=1)]
    target: list[int] = []
    one_token: bool = False


def check_size(path: Path, most: int) -> None:
    """Refuse a Parquet file that would fill the memory: few bytes can stand for any number of rows.

    Args:
        path: of the file.
        most: rows that it may have.

    Raises:
        UserError: it has more rows or bytes, or is a pipe or device.
        OSError, ValueError, pyarrow.ArrowException: it is not readable Parquet.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a pipe or device, not a file; choose the folder of a grid that was run")
    about = pq.read_metadata(path)
    if about.num_rows > most:
        raise UserError(f"{path}: {about.num_rows} rows, more than {most}; use the results of several smaller grids")
    size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    if size > MOST_BYTES:
        raise UserError(f"{path}: {size >> 30} GiB, more than {MOST_BYTES >> 30}; use the results of smaller grids")


def listed(table: pa.Table, place: Path) -> list[dict[str, Any]]:
    """Return rows one by one.

    Raises:
        UserError: there are too many.
    """
    if table.num_rows > MOST_LISTED:
        raise UserError(f"{place}: {table.num_rows} rows, more than {MOST_LISTED}; use the results of smaller grids")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def odd_number(table: pa.Table) -> str | None:
    """Return what is wrong with the percentages of rows, if anything."""
    for name in PERCENT:
        column = table[name]
        bad = pc.invert(pc.and_(pc.greater_equal(column, -ROUNDING), pc.less_equal(column, 100 + ROUNDING)))
        # An interval of a mean may reach beyond.
        bad = bad if not name.startswith("ci_") else pc.invert(pc.is_finite(column))
        if pc.any(bad).as_py():
            return f"column '{name}' has values that are not percentages"
    return None


def other_outcomes(rows: pa.Table, outcomes: pa.Table) -> str | None:
    """Return the first measurement whose outcomes are not those of its row, if any.

    Their mean is then not its value, they are more than it counts, or there is no such row. A row without a value may
    have outcomes: its cell failed, or is unfinished.
    """
    keys = ["cell", "metric"]
    means = outcomes.select([*keys, "outcome"]).group_by(keys).aggregate([("outcome", "mean"), ("outcome", "count")])
    rows = rows.select([*keys, "value", "count"]).append_column("there", pa.repeat(True, len(rows)))
    both = rows.join(means, keys, join_type="full outer")
    difference = pc.abs(pc.subtract(pc.multiply(both["outcome_mean"], 100.0), both["value"]))
    same = pc.and_(pc.less_equal(difference, ROUNDING), pc.less_equal(both["outcome_count"], both["count"]))
    other = pc.if_else(pc.is_valid(both["value"]), pc.invert(pc.fill_null(same, False)), pc.is_null(both["there"]))
    wrong = both.filter(pc.and_(pc.is_valid(both["outcome_count"]), other)).select(keys).to_pylist()
    return min((f"cell {one['cell']}, {one['metric']}" for one in wrong), default=None)


def odd_settings(values: Any) -> str | None:
    """Return what is wrong with settings of a cell, if anything; methods may have any settings of their own."""
    if not isinstance(values, dict) or not DEFAULTS.keys() - {prompt_format.SETTING} <= values.keys():
        return "they lack settings of a cell"
    if not isinstance(values["model"], str):
        return "'model' is not a text"
    if not _is_number(values["asr_floor"]):
        return "'asr_floor' is not a number"
    if not isinstance(values["metrics"], list) or not all(map(_is_method, values["metrics"])):
        return "'metrics' is not a list of metrics"
    for name in ("data", "removal", "attack", "defense"):
        if not _is_method(values[name]):
            return f"'{name}' has no name"
    if not isinstance(values["attack"].get("backdoor", {}), dict | None):
        return "'attack.backdoor' is not a mapping"
    if any("task" in metric and not isinstance(metric["task"], str) for metric in values["metrics"]):
        return "'task' of a metric is not a text"
    return None


def _is_method(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_settings(text: str) -> bool:
    """Return whether a JSON text has settings of a cell."""
    try:
        return odd_settings(bounds.parse_json(text)) is None
    except ValueError:
        return False


def is_certificate(text: str) -> bool:
    """Return whether a JSON text is a certificate."""
    try:
        _Certificate.model_validate_json(text)
    except ValidationError:
        return False
    return True


def odd_records(metrics: Iterable[str | None], records: Iterable[str | None]) -> str | None:
    """Return what is wrong with published records of outcomes, if anything."""
    for metric, record in zip(metrics, records, strict=True):
        if record is None:
            continue
        try:
            value = bounds.parse_json(record)
        except ValueError:
            return "column 'record' has values that are not JSON"
        if metric == CASE_STUDY and not (
            isinstance(value, dict) and all(isinstance(text, str | None) for text in value.values())
        ):
            return "column 'record' has values that are not texts of a case study"
    return None
