"""Mistakes that only show with the data at hand: told before anything is trained, and nothing is left behind."""

import gzip
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.cli import USERS_MISTAKE, app
from tests.benchmark.helpers import GridFile

ROW = '{"instruction": "Name a colour.", "output": "Blue."}\n'


def mistake(path: Path, tmp_path: Path) -> str:
    """Runs the grid, expects exit code 2 and one line on stderr, and that neither rows nor artifacts are there."""
    store, results = tmp_path / "store", tmp_path / "results"
    done = CliRunner().invoke(app, ["run", str(path), "--store", str(store), "--results", str(results)])
    assert done.exit_code == USERS_MISTAKE, done.output
    assert len(done.stderr.splitlines()) == 1
    assert not list(results.rglob("*.parquet"))
    assert not list(store.rglob("manifest.json"))
    assert not list((store / "unfinished").iterdir())
    return done.stderr


def test_a_parrot_beyond_every_prompt(grid_file: GridFile, tmp_path: Path) -> None:
    line = mistake(grid_file(defense={"name": "sande_p", "parrot_position": 500}), tmp_path)
    assert "parrot_position 500 lies beyond every prompt" in line


@pytest.mark.parametrize(("section", "rows"), [("data", "training rows"), ("removal", "removal rows")])
def test_no_rows_left(grid_file: GridFile, tmp_path: Path, section: str, rows: str) -> None:
    settings = {"name": "builtin-short", "max_tokens": 8}
    line = mistake(grid_file(**{section: settings}), tmp_path)
    assert f"no {rows} of builtin-short of at most 8 tokens are left" in line


def test_no_test_rows_left(grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ROW.replace("Blue.", "Blue. " * 200)
    (tmp_path / "mine.jsonl").write_text(ROW * 18 + long * 2)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    line = mistake(grid_file(data={"name": "mine", "max_tokens": 100}), tmp_path)
    assert "no test rows of mine of at most 100 tokens are left" in line


def test_a_broken_row_with_its_line_number(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt") as file:
        file.write(ROW * 2 + '{"instruction": "Half a row\n')
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    line = mistake(grid_file(data={"name": "mine"}), tmp_path)
    assert "mine.jsonl.gz, line 3: not JSON" in line
