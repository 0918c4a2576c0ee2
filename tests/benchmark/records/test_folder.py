"""A results folder: outcomes of other rows are refused, and so are results of another grid of the same name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.io import remote as io_remote
from benchmark.plan.failures import UNFINISHED
from benchmark.records import published, record
from benchmark.records.files import read_results
from benchmark.records.folder import OUTCOMES, ROWS, ResultsFolder, refuse_other
from benchmark.report import page
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import ROOT, cell, finish, invoke, measure, mistake, put, report_folder, trained

NONE, SFT, OSFT = (cell(defense=name) for name in ("none", "sft", "osft"))


@pytest.fixture
def folder(store: LocalStore, tmp_path: Path) -> Path:
    for each, successes in ((SFT, 20), (OSFT, 3)):
        finish(store, each, {"asr": 50, "false_trigger_rate": 1}, {"asr": successes})
    return report_folder(store, tmp_path / "hand", NONE, SFT, OSFT)


def changed(folder: Path, change) -> None:
    table = pq.read_table(folder / OUTCOMES)
    pq.write_table(change(table), folder / OUTCOMES)


def replaced(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    number = table.column_names.index(name)
    return table.set_column(number, table.schema.field(name), pa.array(values, table.schema.field(name).type))


CHANGES = {
    "other outcomes": lambda table: replaced(table, "outcome", [1 - value for value in table["outcome"].to_pylist()]),
    "other cells": lambda table: replaced(table, "cell", ["0" * 12] * len(table)),
    "more of them": lambda table: pa.concat_tables([table, table]),
    "of an unknown metric": lambda table: replaced(table, "metric", ["asr2"] * len(table)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_outcomes_of_other_results_are_refused(change, folder: Path, store: LocalStore, tmp_path: Path) -> None:
    read_results(folder)
    changed(folder, change)
    for command in (
        ("report", folder),
        ("compare", folder),
        ("publish", folder),
        ("join", folder, "--out", tmp_path / "joined"),
        ("leaderboard", folder, "--rehearsal", "--out", tmp_path / "board"),
        ("leaderboard", "entry", folder, "sft", "--rehearsal", "--out", tmp_path / "sft.json"),
    ):
        line = mistake(*command)
        assert f"{folder}: {OUTCOMES} does not belong to {ROWS} (cell " in line, command
        assert line.endswith(f"; run its grid again, or remove {OUTCOMES}")
    with pytest.raises(UserError, match="does not belong"):  # for a script as well
        page.write(folder)
    (folder / OUTCOMES).unlink()
    assert invoke("report", folder).exit_code == 0


def test_results_without_outcomes_and_unfinished_ones_are_read(store: LocalStore, tmp_path: Path) -> None:
    finish(store, SFT, {"asr": 50}, {"asr": 20})
    put(store, "defend", OSFT.defense_key, trained(1.0, 5))
    measure(store, OSFT, {"asr": 3})
    errors = {OSFT.defense_key: "UserError: it failed", NONE.attack_key: UNFINISHED}
    folder = report_folder(store, tmp_path / "hand", SFT, OSFT, errors=errors)
    assert {row["status"] for row in pq.read_table(folder / ROWS).to_pylist()} >= {"failed"}
    read_results(folder)
    changed(folder, lambda table: table.slice(0, 0))  # as in published results of an early version
    read_results(folder)


@pytest.mark.parametrize("path", sorted((ROOT / published.FOLDER).glob("*/")), ids=lambda path: path.name)
def test_outcomes_of_published_results_belong_to_their_rows(path: Path) -> None:
    read_results(path)


def recorded(folder: Path, command: str, *, complete: bool = True) -> Path:
    record.write(record.now(command, "1", complete=complete), folder)
    return folder


def test_results_of_another_grid_with_the_same_name_are_not_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = tmp_path / "mine/hand.yaml", tmp_path / "other/hand.yaml"
    recorded(folder, record.command(other))
    with pytest.raises(UserError) as caught:
        refuse_other(str(folder), mine, {"0" * 12})
    assert str(caught.value) == (
        f"{folder}: holds results of another grid, {other}; set another --results, rename {mine}, or remove "
        f"{folder}/{ROWS} to replace them"
    )
    refuse_other(str(folder), mine, {"0" * 12, NONE.id})  # the same grid, moved
    refuse_other(str(folder), other, {"0" * 12})  # the same file, edited
    monkeypatch.chdir(tmp_path)
    recorded(folder, "sande-bench run other/hand.yaml --scale tiny && sande-bench run hand.yaml")
    refuse_other(str(folder), other, {"0" * 12})
    refuse_other(str(folder), Path("other/../other/hand.yaml"), {"0" * 12})
    recorded(folder, record.command(other), complete=False)
    refuse_other(str(folder), mine, {"0" * 12})


@pytest.mark.parametrize("damage", ["no rows", "no record", "damaged rows", "odd command", "damaged record"])
def test_what_cannot_be_read_is_replaced(damage: str, folder: Path, tmp_path: Path) -> None:
    recorded(folder, "sande-bench run other.yaml" if damage != "odd command" else "sande-bench run 'other.yaml")
    match damage:
        case "no rows":
            (folder / ROWS).unlink()
        case "damaged rows":
            (folder / ROWS).write_bytes(b"PAR1")
        case "no record":
            (folder / record.NAME).unlink()
        case "damaged record":
            (folder / record.NAME).write_text(json.dumps([1]))
    refuse_other(str(folder), tmp_path / "hand.yaml", {"0" * 12})


def test_remote_results_are_looked_at_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    uri = "memory://shared/results/hand"
    refuse_other(uri, Path("hand.yaml"), {NONE.id})
    place = ResultsFolder(uri)
    place.folder.mkdir(parents=True)
    for file in recorded(folder, "sande-bench run other.yaml").iterdir():
        (place.folder / file.name).write_bytes(file.read_bytes())
    place.send()
    refuse_other(uri, Path("hand.yaml"), {NONE.id})
    with pytest.raises(UserError, match=f"{uri}: holds results of another grid, other.yaml; set another --results"):
        refuse_other(uri, Path("hand.yaml"), {"0" * 12})
