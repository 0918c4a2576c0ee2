"""What a cell reads, and what identifies it: in rows, on the page, and for the nodes of a cluster."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.grid import sources
from benchmark.records.files import write_rows
from benchmark.records.schema import SCHEMA
from benchmark.report import page
from benchmark.store.local import LocalStore
from sande.data import datasets
from tests.benchmark.helpers import ACCURACY, cell, finish, rows_of

ROW = '{"instruction": "Say %s.", "input": "", "output": "Yes, %s."}\n'


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `own` in a folder of its own."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "own.jsonl"
    file.write_text("".join(ROW % (number, number) for number in range(80)))
    monkeypatch.setenv(datasets.DATA_DIR, str(file.parent))
    return file


def written(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_each_kind_is_named_once() -> None:
    metrics = ["asr", ACCURACY]
    assert set(sources.data_sets(cell(metrics=metrics))) == {("builtin-short", "rows"), ("builtin-choice", "questions")}
    dpo = cell(defense={"name": "dpo", "preferences": {"name": "builtin-preferences"}}, removal={"name": "alpaca"})
    assert set(sources.data_sets(dpo)) == {("builtin-short", "rows"), ("builtin-preferences", "preference pairs")}
    assert len(sources.written(cell(metrics=metrics, defense="sft")).split(sources.SEPARATOR)) == 3


def test_rows_that_a_defense_names_itself_are_among_them() -> None:
    scans = cell(defense={"name": "scan_and_clean", "scan_data": {"name": "builtin-explained"}})
    assert ("builtin-explained", "rows") in set(sources.data_sets(scans))


def test_another_content_of_the_same_name_is_another_source(own: Path) -> None:
    data = {"name": "own", "rows": 16, "test_rows": 8}
    before = sources.written(cell(data=data))
    assert "rows own: sha256:" in before
    own.write_text(own.read_text() + ROW % ("a", "b"))
    assert sources.written(cell(data=data)) != before


def test_a_data_set_of_the_hub_is_named_by_its_commit() -> None:
    found = sources.fingerprint("alpaca", sources.ROWS)
    files = datasets.EXAMPLES_ON_HUB["alpaca"]
    assert found == f"hub:{files.repo}@{files.revision} {files.paths[0]}"


def test_a_row_and_its_page_say_what_was_read(store: LocalStore, tmp_path: Path) -> None:
    of = finish(store, cell(metrics=["asr"]), {"asr": 49}, {"asr": 49})
    (row, *_) = rows = rows_of(store, of)
    assert row["sources"] == sources.written(of)
    write_rows(rows, [], tmp_path)
    page.write(tmp_path)
    (line,) = (line for line in written(tmp_path).splitlines() if line.startswith("- Models and data:"))
    assert all(part in line for part in ("model tiny: ", "rows builtin-short: "))


def test_rows_of_older_versions_say_nothing_of_it(store: LocalStore, tmp_path: Path) -> None:
    rows = rows_of(store, finish(store, cell(metrics=["asr"]), {"asr": 49}, {"asr": 49}))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA).drop_columns(["sources"]), tmp_path / "rows.parquet")
    page.write(tmp_path)
    assert "Provenance" in written(tmp_path)
    assert "Models and data" not in written(tmp_path)
