"""Boards, entries and scans of what is not on this machine: the same as of a copy here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.detection import scan_grid
from benchmark.detection.scan import How
from benchmark.io import remote as io_remote
from benchmark.io.remote import Remote
from benchmark.plan.plan import victim_of
from benchmark.records import record
from benchmark.records.folder import ResultsFolder
from benchmark.store.local import LocalStore
from benchmark.store.remote import open_store
from tests.benchmark.helpers import (
    ACCURACY,
    GridFile,
    cell,
    finish,
    invoke,
    measure,
    mistake,
    report_folder,
    trained,
)

METRICS = [{"name": "asr"}, ACCURACY]
CELLS = [cell(defense=name, metrics=METRICS) for name in ("none", "sft", "osft")]


@pytest.fixture
def uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(io_remote, "FIRST_PAUSE", 0.001)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://shared/results"


@pytest.fixture
def results(store: LocalStore, tmp_path: Path, uri: str) -> Path:
    """Results of three cells here, and at `URI/hand`."""
    for each in CELLS:
        finish(store, each, {"asr": 49, "builtin-choice": 40}, {"asr": 3, "builtin-choice": 39})
    folder = report_folder(store, tmp_path / "hand", *CELLS)
    place = ResultsFolder(f"{uri}/hand")
    report_folder(store, place.folder, *CELLS)
    place.send()
    return folder


def test_a_board_of_results_elsewhere_is_that_of_a_copy_here(results: Path, uri: str, tmp_path: Path) -> None:
    pages = []
    for place in (str(results), f"{uri}/hand"):
        out = tmp_path / f"board{len(pages)}"
        done = invoke("leaderboard", place, "--rehearsal", "--out", out)
        assert done.exit_code == 0, done.output
        page = (out / "leaderboard.md").read_text()
        assert place in page
        pages.append(page.replace(place, "PLACE"))
    assert pages[0] == pages[1]


def test_an_entry_of_results_elsewhere_joins_a_board(results: Path, uri: str, tmp_path: Path) -> None:
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    for place, file in zip((results, f"{uri}/hand"), files, strict=True):
        done = invoke("leaderboard", "entry", place, "sft", "--rehearsal", "--out", file)
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes()
    Remote(uri).write("mine.json", files[0].read_bytes())
    done = invoke("leaderboard", f"{uri}/hand", f"{uri}/mine.json", "--rehearsal", "--out", tmp_path / "board")
    assert done.exit_code == 0, done.output


def test_results_elsewhere_are_joined_with_the_command_of_their_run(results: Path, uri: str, tmp_path: Path) -> None:
    made = record.now("sande-bench run grids/hand.yaml --only defense=sft", "1", complete=True)
    Remote(f"{uri}/hand").write(record.NAME, json.dumps(dataclasses.asdict(made)).encode())
    done = invoke("join", f"{uri}/hand", "--out", tmp_path / "joined")
    assert done.exit_code == 0, done.output
    joined = record.read(tmp_path / "joined")
    assert joined is not None
    assert joined.command == made.command
    assert (tmp_path / "joined/tables/asr.md").is_file()


@pytest.mark.parametrize(
    ("name", "missing"), [("absent", "no rows.parquet"), ("absent.json", "no such file; choose the .json")]
)
def test_a_place_without_results_is_one_line_with_its_uri(uri: str, name: str, missing: str, tmp_path: Path) -> None:
    line = mistake("leaderboard", f"{uri}/{name}", "--out", tmp_path / "board")
    assert line.startswith(f"sande-bench: {uri}/{name}: {missing}")


def test_what_was_removed_there_is_not_read_from_the_copy_here(results: Path, uri: str, tmp_path: Path) -> None:
    assert invoke("leaderboard", f"{uri}/hand", "--rehearsal", "--out", tmp_path / "board").exit_code == 0
    Remote(f"{uri}/hand").delete("rows.parquet")
    assert "no rows.parquet" in mistake("leaderboard", f"{uri}/hand", "--rehearsal", "--out", tmp_path / "board")


def test_victims_of_a_store_elsewhere_are_scanned(
    uri: str, grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "memory://shared/store"
    victim = cell()

    def build(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(b"weights")
        return trained(1.0, 2)

    open_store(place).put("attack", victim.attack_key, build)
    measure(open_store(place), victim_of(victim), {"asr": 20})
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "elsewhere"))
    scanned = []

    def scan(model: str, how: How, models: Path, say: object) -> dict[str, Any]:
        scanned.append(Path(model))
        assert (Path(model) / "model.safetensors").read_bytes() == b"weights"
        return {}

    monkeypatch.setattr(scan_grid.scan, "scan", scan)
    monkeypatch.setattr(scan_grid.scan, "write", lambda record, folder: "")
    monkeypatch.setattr(scan_grid, "_made", lambda *_: False)
    out = tmp_path / "scans"
    out.mkdir()
    done = invoke("scan", grid_file(), "--store", place, "--out", out)
    assert done.exit_code == 0, done.output
    assert [path.name for path in scanned] == [victim.attack_key]
    line = mistake("scan", grid_file(attack_seed=5), "--store", place, "--out", out)
    assert f"1 of 1 victims are not in the store {place}; use 'sande-bench run" in line
