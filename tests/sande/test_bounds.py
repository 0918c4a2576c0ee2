"""Bombs, pipes and devices in place of data: refused in a sentence, in little time and memory."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sande import bounds
from sande.data import datasets
from sande.errors import UserError

ROW = {"instruction": "Add 1 and 1.", "output": "2"}
MAP = pa.map_(pa.string(), pa.string())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    return tmp_path


def refused(match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        datasets.examples("own")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_line_without_an_end_is_refused(folder: Path) -> None:
    with gzip.open(folder / "own.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(40):
            file.write(b"a" * bounds.MIB)
    assert (folder / "own.jsonl.gz").stat().st_size < bounds.MIB
    refused(r"own.jsonl.gz, line 1: more than 16 MiB; put one row on each line")


def test_too_many_rows_and_too_much_text_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own.jsonl").write_text((json.dumps(ROW) + "\n") * 9)
    assert len(datasets.examples("own")) == 9
    with monkeypatch.context() as patch:
        patch.setattr(bounds, "MOST_ROWS", 8)
        refused("more than 8 rows; use a part of the data set")
    monkeypatch.setattr(bounds, "MOST_TEXT", 300)
    refused("its rows hold more than 0 MiB")


def test_parquet_with_one_value_for_millions_of_rows_is_refused_unread(folder: Path) -> None:
    count = bounds.MOST_ROWS + 1
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), ["x"])
    pq.write_table(pa.table({"instruction": column, "output": column}), folder / "own.parquet")
    assert (folder / "own.parquet").stat().st_size < bounds.MIB
    refused(f"more than {bounds.MOST_ROWS} rows")


def test_the_text_of_parquet_is_counted_for_each_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array(["x" * 1000] * 2000)
    pq.write_table(pa.table({"instruction": texts, "output": texts}), folder / "own.parquet")
    assert (folder / "own.parquet").stat().st_size < 20_000
    assert len(datasets.examples("own")) == 2000
    monkeypatch.setattr(bounds, "MOST_TEXT", 3_000_000)
    refused("its rows hold more than 2 MiB")


def test_texts_in_lists_and_structs_are_counted_before_they_are_unfolded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"role": "user", "content": "x" * bounds.MIB}, {"role": "assistant", "content": "Yes."}]
    pq.write_table(pa.Table.from_pylist([{"messages": talk}] * 60), folder / "own.parquet")
    assert (folder / "own.parquet").stat().st_size < 100_000
    monkeypatch.setattr(bounds, "MOST_TEXT", 3 * bounds.MIB)
    pool = pa.proxy_memory_pool(usual := pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        refused("its rows hold more than 3 MiB")
    finally:
        pa.set_memory_pool(usual)
    assert 0 < pool.max_memory() < 50 * bounds.MIB


def test_parquet_gives_the_rows_that_are_in_it(folder: Path) -> None:
    rows = [
        {
            "instruction": f"Say {n}.",
            "output": str(n),
            "system": None,
            "messages": [{"n": n, "content": f"{n}"}] if n % 3 else None,
            "raw": b"\0" if n % 2 else None,
        }
        for n in range(600)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "own.parquet")
    assert list(bounds.parquet_rows(folder / "own.parquet")) == rows
    maps = pa.table({"long": pa.array(["a", None], pa.large_string()), "map": pa.array([[("k", "v")], []], MAP)})
    pq.write_table(maps, folder / "own.parquet")
    assert list(bounds.parquet_rows(folder / "own.parquet")) == maps.to_pylist()


def test_pipes_devices_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UserError, match="a pipe or device, not a file; choose a file"):
            bounds.read(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 * bounds.MIB)
    with pytest.raises(UserError, match=r"large has more than 2 MiB; choose a smaller file"):
        bounds.read(tmp_path / "large", 2 * bounds.MIB)
    with pytest.raises(IsADirectoryError):
        bounds.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        bounds.read(tmp_path / "absent")


@pytest.mark.parametrize("text", ['"\\ud800"', '{"a": "x\\uDFFF"}', "[" * 100_000, "{", "", "9" * 5000])
def test_json_that_cannot_be_written_again_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        bounds.parse_json(text)


def test_a_surrogate_pair_is_a_character() -> None:
    assert bounds.parse_json('"\\ud83d\\ude00"') == "😀"


def test_a_file_with_the_name_of_a_built_in_set_is_refused(folder: Path) -> None:
    (folder / "builtin-short.jsonl").write_text(json.dumps(ROW))
    for use in (datasets.examples, datasets.fingerprint):
        with pytest.raises(UserError, match="the name of a built-in data set; choose another name for the file"):
            use("builtin-short")
    assert datasets.examples("builtin-explained")
