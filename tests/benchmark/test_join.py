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
    assert "left_out" not in made, "earlier versions could not read it"
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


@pytest.fixture
def by_attack(store: LocalStore, tmp_path: Path) -> list[Path]:
    """One part an attack seed, each with its victim and two defenses."""
    return [
        part(store, tmp_path / f"seed={seed}", *cells_of(store, seed), grid=f"{GRID}--only-attack_seed={seed}")
        for seed in (70, 71, 72)
    ]


def cells_of(store: LocalStore, seed: int) -> list[Cell]:
    cells = [cell(attack_seed=seed, defense=name, metrics=["asr"]) for name in ("none", "sft", "osft")]
    return [finish(store, each, VICTIM, {"asr": 5}) for each in cells]


def joined(out: Path, *arguments: object) -> str:
    """The page of a join."""
    done = invoke("join", *arguments, "--out", out)
    assert done.exit_code == 0, done.output
    return (out / "README.md").read_text()


def test_an_erratum_says_of_which_parts_it_is(tmp_path: Path, by_attack: list[Path]) -> None:
    for folder in by_attack[:2]:
        erratum.write("Rows were not mixed.", folder)
    erratum.write("One row is wrong.", by_attack[2])
    text = joined(tmp_path / "joined", *by_attack)
    assert "**Erratum.** Of attack seeds 70 and 71: Rows were not mixed. Of attack seed 72: One row is wrong.\n" in text


def test_an_erratum_of_all_parts_is_of_the_whole(tmp_path: Path, by_attack: list[Path]) -> None:
    for folder in by_attack:
        erratum.write("Rows were not mixed.", folder)
    assert "**Erratum.** Rows were not mixed.\n" in joined(tmp_path / "joined", *by_attack)


def test_an_erratum_names_the_folder_of_a_part_that_no_setting_sets_apart(tmp_path: Path, parts: list[Path]) -> None:
    erratum.write("Rows were not mixed.", parts[0])
    assert "**Erratum.** Of seed=2: Rows were not mixed.\n" in joined(tmp_path / "joined", *parts)
    namesake = tmp_path / "other/seed=2"
    namesake.parent.mkdir()
    parts[2].rename(namesake)
    text = joined(tmp_path / "joined", *parts[:2], namesake)
    assert f"**Erratum.** Of {parts[0]}: Rows were not mixed.\n" in text


def test_errata_of_a_joined_part_keep_what_they_are_of(tmp_path: Path, by_attack: list[Path]) -> None:
    erratum.write("Rows were not mixed.", by_attack[0])
    joined(tmp_path / "first", *by_attack[:2])
    erratum.write_all([*erratum.read_all(tmp_path / "first"), "One row is wrong."], tmp_path / "first")
    joined(tmp_path / "then", tmp_path / "first", by_attack[2])
    assert erratum.read_all(tmp_path / "then") == [
        "Of attack seed 70: Rows were not mixed.",
        "Of attack seeds 70 and 71: One row is wrong.",
    ]


LEAVE_OUT = "--leave-out", "attack_seed=71", "--leave-out", "defense=sft"


def test_cells_of_a_part_are_left_out(tmp_path: Path, by_attack: list[Path]) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    of_part = {"attack_seed": 71, "defense": "sft", "metrics": ["asr"]}
    joined(whole, *by_attack)
    text = joined(out, *by_attack, *LEAVE_OUT)
    rows = pq.read_table(whole / "rows.parquet").to_pylist()
    kept = [row for row in rows if (row["attack_seed"], row["defense"]) != (71, "sft")]
    assert {row["cell"] for row in rows} - {row["cell"] for row in kept} == {cell(**of_part).id}
    assert pq.read_table(out / "rows.parquet").to_pylist() == kept
    outcomes = pq.read_table(whole / "outcomes.parquet").to_pylist()
    cells = {row["cell"] for row in kept}
    assert pq.read_table(out / "outcomes.parquet").to_pylist() == [row for row in outcomes if row["cell"] in cells]
    made = record.read(out)
    assert made is not None
    assert made.left_out == ("the cells with attack_seed=71 and defense=sft, 1 cell",)
    command = " ".join(map(str, ("sande-bench join", *by_attack, *LEAVE_OUT, "--out", out)))
    assert made.command.endswith(f" && {command}")
    assert "Left out: the cells with attack_seed=71 and defense=sft, 1 cell.\n" in text
    assert command in text


def test_one_of_several_values_of_a_path_is_enough(tmp_path: Path, by_attack: list[Path]) -> None:
    more = "--leave-out", "defense=osft", "--leave-out", "setting=in-domain", "--leave-out", "data.rows='16'"
    text = joined(tmp_path / "joined", *by_attack, *LEAVE_OUT, *more)
    assert "defense=sft or osft, setting=in-domain and data.rows=16, 2 cells." in text
    rows = pq.read_table(tmp_path / "joined/rows.parquet").to_pylist()
    assert {row["defense"] for row in rows if row["attack_seed"] == 71} == {"none"}


def test_what_a_part_lacks_stands_in_the_next_join(tmp_path: Path, by_attack: list[Path]) -> None:
    first = tmp_path / "first"
    joined(first, by_attack[1], *LEAVE_OUT[2:])
    text = joined(tmp_path / "then", by_attack[0], first)
    assert "Left out: Of attack seed 71: the cells with defense=sft, 1 cell." in text
    assert f"sande-bench join {by_attack[1]} --leave-out defense=sft --out {first}" in text


def test_a_cell_that_a_part_is_to_lack_comes_from_another(tmp_path: Path, by_attack: list[Path]) -> None:
    other = LocalStore(tmp_path / "other")
    again = finish(other, cell(attack_seed=71, defense="sft", metrics=["asr"]), VICTIM, {"asr": 9})
    mended = part(other, tmp_path / "mended", again, grid=GRID)
    assert "measured its cell" in mistake("join", *by_attack, mended, "--out", tmp_path / "joined")
    joined(tmp_path / "first", by_attack[1], *LEAVE_OUT[2:])
    joined(tmp_path / "joined", by_attack[0], tmp_path / "first", mended)
    rows = pq.read_table(tmp_path / "joined/rows.parquet").to_pylist()
    assert [row["value"] for row in rows if row["cell"] == again.id and row["metric"] == "asr"] == [18.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["defense"], "--leave-out 'defense': expected path.to.field=value"),
        (["defence=sft"], "--leave-out defence: no cell has that field; use a path that begins with one of: asr_floor"),
        (["attack_seed=73", "defense=sft"], "no cell of the parts matches --leave-out attack_seed=73; use"),
        (
            ["defense_seed=71", "attack_seed=70"],
            "no cell of the parts matches --leave-out defense_seed=71 --leave-out attack_seed=70; use",
        ),
        (["model=tiny"], "every cell of the parts matches --leave-out"),
    ],
)
def test_what_cannot_be_left_out_is_one_sentence(
    tmp_path: Path, by_attack: list[Path], given: list[str], said: str
) -> None:
    options = [word for text in given for word in ("--leave-out", text)]
    assert said in mistake("join", *by_attack, *options, "--out", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
