"""Rows of earlier versions, in which one seed decided attack and defense, are read as rows of this one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.records import aggregate, files, published
from benchmark.records.schema import SCHEMA
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import cell, finish, rows_of

PUBLISHED = Path(__file__).parents[3] / published.FOLDER


def earlier(row: dict[str, Any]) -> dict[str, Any]:
    """The row as an earlier version wrote it."""
    settings = json.loads(row["settings"])
    settings["seed"] = settings.pop("attack_seed")
    del settings["defense_seed"]
    kept = {name: value for name, value in row.items() if not name.endswith("_seed")}
    return kept | {"seed": settings["seed"], "settings": json.dumps(settings, sort_keys=True)}


def written(rows: list[dict[str, Any]], folder: Path) -> Path:
    types = {field.name: field.type for field in SCHEMA} | {"seed": pa.int64()}
    schema = pa.schema([(name, types[name]) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "rows.parquet")
    return folder


@pytest.fixture
def now(store: LocalStore) -> list[dict[str, Any]]:
    cells = [finish(store, cell(seed=seed, defense=d), {"asr": 50}) for d in ("none", "sft") for seed in (0, 1)]
    rows = rows_of(store, *cells)
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()  # type: ignore[no-any-return]


def test_columns_and_settings_get_both_seeds(now: list[dict[str, Any]], tmp_path: Path) -> None:
    before = [earlier(row) for row in now]
    assert all("seed" in row and "attack_seed" not in row for row in before)
    table = files.read_rows(written(before, tmp_path))
    assert "seed" not in table.column_names
    assert table.to_pylist() == now
    entries = aggregate.Results(table).entries()
    assert {(entry.defense, entry.seeds) for entry in entries} == {("none", 2), ("sft", 2)}


def test_damaged_settings_stay_a_sentence(now: list[dict[str, Any]], tmp_path: Path) -> None:
    before = [earlier(row) for row in now]
    before[1]["settings"] = '{"seed": 1'
    with pytest.raises(UserError, match=r"the file is damaged \(column 'settings' has values that are not settings"):
        files.read_rows(written(before, tmp_path))


@pytest.mark.parametrize("folder", sorted(path.parent for path in PUBLISHED.glob("*/rows.parquet")), ids=str)
def test_published_rows_are_read(folder: Path) -> None:
    table = files.read_rows(folder)
    for row in table.select(["attack_seed", "defense_seed", "settings"]).to_pylist():
        settings = json.loads(row.pop("settings"))
        assert "seed" not in settings
        assert row == {name: settings[name] for name in row}
