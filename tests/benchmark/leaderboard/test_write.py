"""The leaderboard's files, from results."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.leaderboard.write import write
from benchmark.records import files
from sande.errors import UserError
from tests.benchmark.leaderboard.helpers import GPU, cell


def test_a_cell_in_two_folders_counts_once_and_all_files_appear(tmp_path: Path) -> None:
    made = cell("sft", 98.0, {"arc_easy": 1.0}) + cell("sande", 1.0, {"arc_easy": 2.0})
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        files.write_rows(made, [], folder)
    page = write(folders, tmp_path / "board")
    said = CliRunner().invoke(app, ["leaderboard", *map(str, folders), "--out", str(tmp_path / "board")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "board" / "leaderboard.md").read_text() == page
    assert "| 1 | `sande` | response | 1.0 | +2.00 | 1 | 60 GPU-s" in page
    assert "1 victim, 1 seed, 1 cell" in page
    records = pq.read_table(tmp_path / "board" / "leaderboard.parquet").to_pylist()
    assert [(record["defense"], record["asr"], record["utility_loss"]) for record in records] == [
        ("sande", 1.0, 2.0),
        ("sft", 98.0, 1.0),
    ]
    assert records[0]["seconds"] == [{"device": GPU, "seconds": 60.0}]
    assert {path.suffix for path in (tmp_path / "board").iterdir()} == {".md", ".parquet", ".png", ".svg"}


def test_results_without_a_defense_to_rank_are_refused(tmp_path: Path) -> None:
    files.write_rows(cell("none", 99.0, {"arc_easy": 0.0}), [], tmp_path)
    with pytest.raises(UserError, match=r".*: no defense has both an ASR and a utility"):
        write([tmp_path], tmp_path / "board")
