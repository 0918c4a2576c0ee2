"""Odd values in any column of rows and outcomes: every command works or says what is wrong, in a sentence."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.export import export
from benchmark.held_out import mask, secret
from benchmark.leaderboard.write import write as write_board
from benchmark.paper import comparison_page
from benchmark.records import schema
from benchmark.records.files import read_rows
from benchmark.report import page
from sande.errors import UserError
from tests.benchmark import outputs
from tests.benchmark.outputs import Row

pytestmark = pytest.mark.usefixtures("few_pixels")
Change = Callable[[Row], None]
TEXTS = (None, "", " ", "null", "[]", "{}", "1", "\x00", "9" * 400, "ﷺ" * 300)
NUMBERS: dict[pa.DataType, tuple[Any, ...]] = {
    pa.int64(): (None, -1, 0, 2**63 - 1, -(2**63)),
    pa.float64(): (None, float("nan"), float("inf"), -1e308, 1e308),
    pa.list_(pa.string()): (None, [], [None], [""], ["."], [".."], ["a", "a"], ["x" * 300]),
}
JSON = (None, True, 3, 2**63 - 1, 10**30, 1e999, "", "x", [], {}, [[]], {"name": None}, {"name": []}, [{"name": {}}])
COLUMNS = [(field.name, value) for field in schema.SCHEMA for value in NUMBERS.get(field.type, TEXTS)]


def paths(value: Any) -> Iterable[tuple[Any, ...]]:
    """Yield the place of everything in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (key,)
        yield from ((key, *rest) for rest in paths(inner))


def put(text: str, path: tuple[Any, ...], value: Any) -> str:
    document = json.loads(text)
    holder = document
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return json.dumps(document)


def few() -> tuple[list[Row], list[Row]]:
    """Rows of two cells, and their outcomes."""
    made = [row for row in outputs.rows() if row["cell"].split()[0] in ("none", "sft") and row["attack_seed"] == 0]
    made += [row | {"metric": "case_study"} for row in made if row["metric"] == "asr"]
    made += [row for row in outputs.rows() if row["status"] in (schema.FAILED, schema.ATTACK_FAILED)]
    return made, outputs.outcomes(made).to_pylist()


MADE, OUTCOMES = few()
SETTINGS = [(path, value) for path in paths(json.loads(MADE[0]["settings"])) for value in JSON]
CERTIFICATES = [(path, value) for path in paths(outputs.CERTIFICATE) for value in JSON]
RECORDS = [*(json.dumps(value) for value in JSON), "{", "\\ud800", '{"clean_prompt": null, "clean_response": 3}']


def commands(folder: Path) -> None:
    """Read a folder of results in every way that the command line has; an error is one sentence."""
    (folder / "key").write_text("sande-bench-secret-1 " + "0" * 64)
    found = (
        lambda: page.write(folder),
        lambda: comparison_page.write(folder, rehearsal=True),
        lambda: write_board([folder], folder / "board", folder / "html", rehearsal=True),
        lambda: outputs.WRITERS["entry"](folder, folder / "entry", str),
        lambda: export.card(export.find_model(MADE[0]["cell"], folder.parent)),
        lambda: mask.revealed(read_rows(folder).to_pylist(), secret.read(folder / "key")),
    )
    for command in found:
        with suppress(UserError):  # any other error fails
            command()


def try_rows(folder: Path, rows: list[Row], outcomes: list[Row]) -> None:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.SCHEMA), folder / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(outcomes, schema=schema.OUTCOMES), folder / "outcomes.parquet")
    commands(folder)


def changed(of: str, number: int) -> tuple[list[Row], list[Row]]:
    """The rows and outcomes with one odd value, in one row or in all."""
    rows, outcomes = [dict(row) for row in MADE], [dict(row) for row in OUTCOMES]
    if of == "column":
        name, value = COLUMNS[number]
        for row in rows[:1] if number % 2 else rows:
            row[name] = value
    elif of == "settings":
        for row in rows[:1] if number % 2 else rows:
            row["settings"] = put(row["settings"], *SETTINGS[number])
    elif of == "certificate":
        rows[0]["certificate"] = put(rows[0]["certificate"], *CERTIFICATES[number])
    else:
        outcomes[0]["record"] = RECORDS[number]
    return rows, outcomes


ALL = {"column": COLUMNS, "settings": SETTINGS, "certificate": CERTIFICATES, "record": RECORDS}
EVERY = [(of, number) for of, values in ALL.items() for number in range(len(values))]


@pytest.mark.parametrize(("of", "number"), EVERY[::61])
def test_some_odd_values(of: str, number: int, tmp_path: Path) -> None:
    try_rows(tmp_path / "results", *changed(of, number))


@pytest.mark.slow
@pytest.mark.parametrize(("of", "number"), EVERY)
def test_every_odd_value(of: str, number: int, tmp_path: Path) -> None:
    try_rows(tmp_path / "results", *changed(of, number))
