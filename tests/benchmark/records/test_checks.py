"""Bounds on files of rows and outcomes, which small files can exceed."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.export import export
from benchmark.io import plots
from benchmark.records import checks, files, mark, schema
from benchmark.report import page
from sande.errors import UserError
from tests.benchmark import outputs
from tests.benchmark.helpers import mistake


def many(path: Path, of: pa.Schema, count: int) -> None:
    """A file with one value for any number of rows."""
    columns = {}
    for field in of:
        if field.type == pa.string():
            columns[field.name] = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), ["x"])
        elif field.name in ("index", "attack_seed"):
            columns[field.name] = pa.repeat(pa.scalar(0, pa.int64()), count)
    pq.write_table(pa.table(columns), path, compression="zstd")


@pytest.mark.parametrize("name", ["rows", "outcomes"])
def test_millions_of_rows_in_a_small_file_are_refused_unread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_ROWS", 100_000)
    monkeypatch.setattr(files, "MOST_OUTCOMES", 100_000)
    folder = outputs.results(tmp_path / "results")
    many(folder / f"{name}.parquet", schema.SCHEMA if name == "rows" else schema.OUTCOMES, 100_001)
    assert (folder / f"{name}.parquet").stat().st_size < 100_000
    with pytest.raises(UserError, match=f"{name}.parquet: 100001 rows, more than 100000; use the results of several"):
        page.write(folder)


def test_more_rows_than_can_be_taken_one_by_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = outputs.results(tmp_path / "results")
    monkeypatch.setattr(checks, "MOST_LISTED", 10)
    for command in (("leaderboard", folder), ("leaderboard", "entry", folder, "sft")):
        assert "rows, more than 10; use the results of smaller grids" in mistake(*command)


def test_a_pipe_in_place_of_rows_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "results/one"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "rows.parquet")
    os.mkfifo(folder / "run.json")
    with pytest.raises(UserError, match="a pipe or device"):
        export.find_model("abc", folder.parent)
    with pytest.raises(UserError, match=r"no rows\.parquet"):
        page.write(folder)
    with pytest.raises(UserError, match="is not one that sande-bench wrote"):
        mark.claim(folder, mark.RESULTS, "--results")


def test_a_damaged_neighbour_stops_no_export(tmp_path: Path) -> None:
    good = outputs.results(tmp_path / "results/b")
    bad = tmp_path / "results/a"
    bad.mkdir()
    (bad / "rows.parquet").write_bytes(b"PAR1 damaged")
    cell = files.read_rows(good)["cell"][0].as_py()
    with pytest.raises(UserError, match=r"^(?!.*damaged)"):  # the cell is made up, so it cannot be parsed
        export.find_model(cell, tmp_path / "results")
    with pytest.raises(UserError, match=r"results/a/rows\.parquet: the file is damaged"):
        export.find_model("absent", tmp_path / "results")


def test_a_search_table_that_is_no_text_does_not_stop_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "save", lambda figure, folder, name: None)
    folder = outputs.results(tmp_path / "results")
    (folder / "search.md").write_bytes(b"### Learning-rate search\n\n\xff\xfe<b>")
    outputs.WRITERS["report"](folder, folder, outputs.harmless)
    assert "��&lt;b>" in (folder / "README.md").read_text(encoding="utf-8")
