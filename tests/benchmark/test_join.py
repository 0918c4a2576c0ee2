"""`sande-bench join`: parts of a grid become one folder, and nothing is joined that does not belong together."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.grid.cell import Cell
from benchmark.records import erratum, record
from benchmark.records.files import write_rows
from benchmark.records.rows import build_outcomes, build_rows
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import cell, finish, invoke, mistake

VICTIM = {"asr": 50}
GRID = "small"


def of_seed(seed: int, defense: str = "sft") -> Cell:
    return cell(attack_seed=1, defense_seed=seed, defense=defense, metrics=["asr"])


def part(store: LocalStore, folder: Path, *cells: Cell, grid: str, errors: Mapping[str, str] | None = None) -> Path:
    """Results of a run of some cells."""
    folder.mkdir(parents=True)
    rows = build_rows(grid, cells, store, errors or {})
    write_rows(rows, build_outcomes(cells, store), folder)
    record.write(record.now(f"sande-bench run grids/{GRID}.yaml --only {folder.name}", "1", complete=True), folder)
    return folder


@pytest.fixture
def parts(store: LocalStore, tmp_path: Path) -> list[Path]:
    """One part a defense seed, and the victim, which is in the first part as well."""
    victim = finish(store, of_seed(1, "none"), VICTIM)
    cells = [finish(store, of_seed(seed), VICTIM, {"asr": seed}) for seed in (2, 3)]
    return [
        part(store, tmp_path / "seed=2", victim, cells[0], grid=f"{GRID}--only-defense_seed=2"),
        part(store, tmp_path / "seed=3", cells[1], grid=f"{GRID}--only-defense_seed=3"),
        part(store, tmp_path / "none", victim, grid=f"{GRID}--only-defense=none"),
    ]


def test_parts_become_what_one_run_would_have_made(store: LocalStore, tmp_path: Path, parts: list[Path]) -> None:
    whole = part(store, tmp_path / "whole", of_seed(1, "none"), of_seed(2), of_seed(3), grid=GRID)
    joined = tmp_path / "joined"
    result = invoke("join", *parts, "--out", joined)
    assert result.exit_code == 0, result.output
    for name in ("rows.parquet", "outcomes.parquet"):
        assert pq.read_table(joined / name).to_pylist() == pq.read_table(whole / name).to_pylist()
    made = json.loads((joined / record.NAME).read_text())
    commands = [f"sande-bench run grids/{GRID}.yaml --only {folder.name}" for folder in parts]
    assert made["complete"]
    assert made["command"] == " && ".join(commands)
    assert f"# Results of `{GRID}`" in (joined / "README.md").read_text()
    assert "5.0" in (joined / "tables/asr.md").read_text()  # 2 and 3 of 50


def test_a_joined_folder_is_a_part_of_the_next(store: LocalStore, tmp_path: Path, parts: list[Path]) -> None:
    at_once, first, then = (tmp_path / name for name in ("at_once", "first", "then"))
    assert invoke("join", *parts, "--out", at_once).exit_code == 0
    assert invoke("join", *parts[:1], "--out", first).exit_code == 0
    assert invoke("join", first, *parts[1:], "--out", then).exit_code == 0
    for name in ("rows.parquet", "README.md"):
        assert (then / name).read_bytes() == (at_once / name).read_bytes()


def test_a_cell_that_was_measured_twice_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    other = LocalStore(tmp_path / "other")
    again = finish(other, of_seed(2), VICTIM, {"asr": 9})
    twice = part(other, tmp_path / "again", again, grid=f"{GRID}--only-defense_seed=2")
    line = mistake("join", *parts, twice, "--out", tmp_path / "joined")
    assert f"{twice}: {parts[0]} measured its cell {again.id} differently" in line
    assert not (tmp_path / "joined").exists()


def test_another_grid_is_refused(store: LocalStore, tmp_path: Path, parts: list[Path]) -> None:
    odd = part(store, tmp_path / "odd", of_seed(2), grid="odd")
    line = mistake("join", *parts, odd, "--out", tmp_path / "joined")
    assert f"{odd}: its grid is odd, that of {parts[0]} is {GRID}" in line


def test_an_unfinished_part_is_refused(store: LocalStore, tmp_path: Path, parts: list[Path]) -> None:
    from benchmark.plan.failures import UNFINISHED

    missing = of_seed(4)
    folder = part(store, tmp_path / "seed=4", missing, grid=GRID, errors={missing.defense_key: UNFINISHED})
    line = mistake("join", *parts, folder, "--out", tmp_path / "joined")
    assert f"{folder}: 1 of its cells are unfinished" in line


def test_a_search_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    rows = pq.read_table(parts[1] / "rows.parquet")
    searched = pa.array(["response"] * len(rows), pa.string())
    number = rows.column_names.index("searched")
    pq.write_table(rows.set_column(number, "searched", searched), parts[1] / "rows.parquet")
    assert f"{parts[1]}: its settings were searched" in mistake("join", *parts, "--out", tmp_path / "joined")


def test_no_part_is_replaced(parts: list[Path]) -> None:
    before = (parts[0] / "rows.parquet").read_bytes()
    assert f"--out {parts[0]}: the folder is one of the parts" in mistake("join", *parts, "--out", parts[0])
    assert (parts[0] / "rows.parquet").read_bytes() == before


def test_results_of_another_grid_or_part_are_not_replaced(store: LocalStore, tmp_path: Path, parts: list[Path]) -> None:
    for name in ("odd", f"{GRID}--only-defense_seed=4"):
        out = part(store, tmp_path / name, of_seed(2), grid=name)
        before = (out / "rows.parquet").read_bytes()
        line = mistake("join", *parts, "--out", out)
        assert line == f"sande-bench: --out {out}: holds results of '{name}'; choose another folder"
        assert (out / "rows.parquet").read_bytes() == before
    for _ in range(2):
        assert invoke("join", *parts, "--out", tmp_path / "joined").exit_code == 0
    (tmp_path / "joined/rows.parquet").write_bytes(b"PAR1")
    assert invoke("join", *parts, "--out", tmp_path / "joined").exit_code == 0, "damaged rows are replaced"


def test_links_in_a_circle_are_one_sentence(tmp_path: Path, parts: list[Path]) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert f"{circle}: no rows.parquet" in mistake("join", *parts, circle, "--out", tmp_path / "joined")
    assert f"--out {circle}: the folder cannot be written" in mistake("join", *parts, "--out", circle)


def test_nothing_published_is_replaced(tmp_path: Path, parts: list[Path]) -> None:
    from benchmark.join import join
    from benchmark.records.published import MARKER

    (tmp_path / MARKER).touch()
    with pytest.raises(UserError, match="only 'sande-bench publish' writes published results"):
        join(parts, tmp_path / "joined")


def test_an_erratum_of_a_part_stays(tmp_path: Path, parts: list[Path]) -> None:
    erratum.write("Rows were not mixed.", parts[1])
    invoke("join", *parts, "--out", tmp_path / "joined")
    assert "**Erratum.** Rows were not mixed." in (tmp_path / "joined/README.md").read_text()
