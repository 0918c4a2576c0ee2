"""A finished run writes nothing again, and writes everything again as soon as anything is not as it left it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.grid.cell import Cell
from benchmark.grid.load import Grid, load_grid
from benchmark.plan.plan import make_plan
from benchmark.report import freshness, page
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import GridFile, cell, finish, measure, trained


def text(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def done(store: LocalStore) -> Cell:
    return finish(store, cell(defense="sft"), {"asr": 50}, {"asr": 7})


@pytest.fixture
def finished(grid_file: GridFile, store: LocalStore, done: Cell) -> Grid:
    return load_grid(grid_file(defense="sft"))


def of(grid: Grid, store: LocalStore) -> str:
    return freshness.fingerprint(grid, make_plan(grid.cells, store), store)


@pytest.fixture
def folder(finished: Grid, store: LocalStore, tmp_path: Path) -> Path:
    """Results as a run leaves them."""
    made = tmp_path / "results" / "small"
    (made / "tables").mkdir(parents=True)
    for name in ("rows.parquet", "outcomes.parquet", "README.md", "tables/asr.md"):
        (made / name).write_text(name)
    freshness.record(made, of(finished, store), ["### Table"], store)
    return made


def test_what_was_shown_is_shown_again(folder: Path, finished: Grid, store: LocalStore) -> None:
    assert freshness.cached_output(folder, of(finished, store), store) == ["### Table"]


def changed(folder: Path) -> None:
    (folder / "tables/asr.md").write_text("mine")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file that was changed": changed,
    "a file that was removed": lambda folder: (folder / "rows.parquet").unlink(),
    "a folder that was removed": lambda folder: shutil.rmtree(folder / "tables"),
    "a table of an earlier run": lambda folder: (folder / "tables/old.md").write_text(""),
    "the trials of a search": lambda folder: (folder / "search.md").write_text(""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_not_up_to_date_with(what: str, folder: Path, finished: Grid, store: LocalStore) -> None:
    CHANGES[what](folder)
    assert freshness.cached_output(folder, of(finished, store), store) is None


def test_files_of_other_commands_do_not_count(folder: Path, finished: Grid, store: LocalStore) -> None:
    (folder / "comparison.md").write_text("")
    assert freshness.cached_output(folder, of(finished, store), store) == ["### Table"]


def test_another_folder_is_not_up_to_date(folder: Path, finished: Grid, store: LocalStore) -> None:
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    assert freshness.cached_output(other, of(finished, store), store) is None


def test_a_damaged_note_counts_as_none(folder: Path, finished: Grid, store: LocalStore) -> None:
    (note,) = (store.root / "reports").iterdir()
    note.write_text(note.read_text()[:50])
    assert freshness.cached_output(folder, of(finished, store), store) is None


def test_what_a_report_is_made_of(
    finished: Grid, store: LocalStore, done: Cell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = of(finished, store)
    assert of(finished, LocalStore(store.root)) == before
    others = [
        of(replace(finished, name="other"), store),
        of(replace(finished, scale="tiny"), store),
        of(replace(finished, parts={done.id: ("other",)}), store),
        of(replace(finished, cells=(finish(store, cell(), {"asr": 50}),)), store),
    ]
    manifest = store.path("defend", done.defense_key) / "manifest.json"
    manifest.write_text(json.dumps(trained(1.0, 2)))
    others.append(of(finished, store))
    others.append(freshness.fingerprint(finished, make_plan(finished.cells, store), store, "sande-bench run other"))
    monkeypatch.setattr(freshness, "version", lambda library: "0.0")
    others.append(of(finished, store))
    monkeypatch.setattr(freshness, "program", lambda: "of another version")
    others.append(of(finished, store))
    assert len({before, *others}) == 1 + len(others)


def test_a_finished_run_says_the_same_and_draws_nothing(
    grid_file: GridFile, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: Cell
) -> None:
    results = tmp_path / "results"
    arguments = [
        *("run", str(grid_file(defense="sft"))),
        *("--store", str(store.root), "--results", str(results)),
    ]

    def run() -> list[str]:
        made = CliRunner().invoke(app, arguments)
        assert made.exit_code == 0, made.output
        return [line for line in made.output.splitlines() if " took " not in line]

    said, files = run(), text(results)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(page, "write", None)
        assert run() == said
    assert text(results) == files
    (results / "small/README.md").unlink()
    assert run() == said
    assert text(results) == files
    # An outcome that was made anew is in the rows.
    shutil.rmtree(store.root / "evaluate")
    measure(store, cell(), {"asr": 50})
    measure(store, done, {"asr": 9})
    assert run() != said
