"""A run from its grid to its report, on a store filled by hand: its record, and what is left when it is interrupted."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from benchmark import pipeline
from benchmark.cli.main import app
from benchmark.execution import driver
from benchmark.grid.cell import Cell
from benchmark.leaderboard import submission
from benchmark.leaderboard.markdown import notes
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.plan import preflight
from benchmark.plan.failures import NON_FINITE, UNFINISHED, Failure, because_of
from benchmark.records import record, rows
from benchmark.records.files import read_rows
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import (
    ACCURACY,
    SFT_FAST,
    SMALL,
    GridFile,
    cell,
    finish,
    invoke,
    measure,
    mistake,
    put,
    report_folder,
    stage,
    trained,
)

METRICS = ["asr", ACCURACY]
SWEEP = {"defense": ["none", "sft", "osft"]}


@pytest.fixture
def grid(grid_file: GridFile) -> Path:
    return grid_file(metrics=METRICS, sweep=SWEEP)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "results/small"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user ends each run before its first stage."""

    def interrupt(*_: Any, **__: Any) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(driver, "run", interrupt)


def run(grid: Path, store: LocalStore, *options: str) -> Result:
    places = ["--store", str(store.root), "--results", str(grid.parent / "results")]
    return CliRunner().invoke(app, ["run", str(grid), *places, *options])


def of(defense: str) -> Cell:
    return cell(defense=defense, metrics=METRICS)


def half_done(store: LocalStore) -> None:
    """The victim is measured; SFT's model is made, and its ASR is known."""
    sft = of("sft")
    finish(store, of("none"), {"asr": 50, "builtin-choice": 20})
    put(store, "defend", sft.defense_key, trained(10.0, 5))
    measure(store, cell(defense="sft"), {"asr": 7})


def done(store: LocalStore) -> None:
    for defense in ("none", "sft", "osft"):
        finish(store, of(defense), {"asr": 50, "builtin-choice": 20}, {"asr": 7, "builtin-choice": 21})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_at_work_from_its_plan_on(
    grid: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done(store)
    plan, leases = pipeline.make_plan, store.lease_backend()
    seen: list[list[str]] = []

    def planned(*arguments: Any) -> Any:
        seen.append(leases.names())
        return plan(*arguments)

    monkeypatch.setattr(pipeline, "make_plan", planned)
    assert run(grid, store).exit_code == 0
    assert [name[:4] for name in seen[0]] == ["run-"], "by which another run drops no model"
    assert leases.names() == []


def test_an_interrupted_run_shows_what_is_measured_and_says_not_run_of_the_rest(
    ended: None, grid: Path, store: LocalStore, place: Path
) -> None:
    half_done(store)
    made = run(grid, store)
    assert made.exit_code == 130
    assert "### " not in made.stdout
    assert made.stderr == (
        f"Interrupted: 3 of 6 stages are done, 3 are left. Run the same command to continue: sande-bench run {grid} "
        f"--store {store.root} --results {place.parent}. Measured so far: {place}/README.md\n"
    )
    found = {(row["defense"], row["metric"]): row for row in pq.read_table(place / "rows.parquet").to_pylist()}
    statuses = {key: row["status"] for key, row in found.items()}
    assert statuses == {
        ("none", "asr"): "ok",
        ("none", "asr_starts_with"): "ok",
        ("none", "builtin-choice"): "ok",
        ("sft", "asr"): "ok",
        ("sft", "asr_starts_with"): "ok",
        ("sft", "builtin-choice"): "not_run",
        ("osft", "asr"): "not_run",
        ("osft", "asr_starts_with"): "not_run",
        ("osft", "builtin-choice"): "not_run",
    }
    assert (found["sft", "asr"]["value"], found["sft", "asr"]["victim_value"]) == (14.0, 100.0)
    assert (found["osft", "asr"]["failure"], found["osft", "asr"]["value"]) == ("interrupted", None)
    page = (place / "README.md").read_text()
    assert "| `osft` | not run |" in page
    assert "| `sft` | builtin-choice | not run |" in page
    assert "| `sft` | 14.0 (" in page
    assert "## Not run\n\nThe run was interrupted: 2 of 3 cells are not finished." in page
    assert "Cells: 3, of which failed: 0, not finished: 2" in page
    assert "## Failed" not in page
    assert not rows.is_complete(place)


def test_a_complete_report_stays_and_the_partial_one_is_beside_it(
    ended: None, grid: Path, store: LocalStore, place: Path, tmp_path: Path
) -> None:
    done(store)
    assert run(grid, store).exit_code == 0
    before = files(place)
    assert before["run.json"]
    other = LocalStore(tmp_path / "other")
    half_done(other)
    made = run(grid, other)
    assert made.exit_code == 130
    assert f"Measured so far: {place}/unfinished/README.md" in made.stderr
    after = files(place)
    assert {name: content for name, content in after.items() if not name.startswith("unfinished/")} == before
    assert "not run" in (place / "unfinished/README.md").read_text()
    assert not record.read(place / "unfinished").complete
    assert run(grid, store).exit_code == 0
    assert files(place) == before, "the next complete run removes it"


def test_a_complete_report_stays_where_its_cells_fail_in_a_later_run(
    grid: Path, store: LocalStore, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: Any, *_: Any, **__: Any) -> dict[str, str]:
        return {stage.key: Failure("loss is nan", NON_FINITE) for stage in plan.missing}

    done(store)
    assert run(grid, store).exit_code == 0
    before = files(place)
    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(driver, "run", broken)
    other = LocalStore(tmp_path / "other")
    half_done(other)
    made = run(grid, other)
    assert made.exit_code == 1
    assert f"{place}: 2 of its cells failed now, so its complete report stays" in made.stdout
    assert f"Report: {place}/unfinished/README.md" in made.stdout
    beside = {name: content for name, content in files(place).items() if name.startswith("unfinished/")}
    assert files(place).items() - beside.items() == before.items()
    assert set(read_rows(place / "unfinished")["status"].to_pylist()) == {"ok", "failed"}
    assert run(grid, store).exit_code == 0
    assert files(place) == before, "the next complete run removes it"
    (place / "rows.parquet").unlink()
    assert run(grid, other).exit_code == 1
    assert "failed" in read_rows(place)["status"].to_pylist(), "nothing is there to be kept"
    assert run(grid, LocalStore(tmp_path / "empty")).exit_code == 1
    assert not (place / "unfinished").exists(), "a report with failed cells is replaced"


def test_a_report_is_replaced_where_other_cells_fail(
    grid: Path, store: LocalStore, place: Path, grid_file: GridFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(store)
    assert run(grid, store).exit_code == 0
    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(
        driver, "run", lambda plan, *_, **__: {stage.key: Failure("nan", NON_FINITE) for stage in plan.missing}
    )
    more = grid_file(metrics=METRICS, sweep={"defense": [*SWEEP["defense"], SFT_FAST]})
    assert run(more, store).exit_code == 1
    assert set(read_rows(place)["status"].to_pylist()) == {"ok", "failed"}, "what was measured is still there"


def test_a_partial_report_is_replaced_by_the_next_one(ended: None, grid: Path, store: LocalStore, place: Path) -> None:
    run(grid, store)
    half_done(store)
    run(grid, store)
    assert not (place / "unfinished").exists()
    assert "| `sft` | 14.0 (" in (place / "README.md").read_text()
    done(store)
    assert run(grid, store).exit_code == 0
    assert rows.is_complete(place)
    assert "not run" not in (place / "README.md").read_text()


def test_a_cell_that_failed_is_failed_though_the_run_was_interrupted_later(
    grid: Path, store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(store)
    sft, osft = of("sft"), of("osft")

    def some(plan: Any, *_: Any, **__: Any) -> dict[str, str]:
        nan = Failure("loss is nan", NON_FINITE)
        broken = {stage(osft, "defend").key: nan, stage(osft, "evaluate").key: because_of(nan)}
        return {stage(sft, "evaluate").key: UNFINISHED} | broken

    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(driver, "run", some)
    made = run(grid, store)
    assert made.exit_code == 130
    assert "are left. 1 of 3 cells failed. Run" in made.stderr
    page = (place / "README.md").read_text()
    assert "| `osft` | failed |" in page
    assert "| `sft` | builtin-choice | not run |" in page
    assert "loss is nan" in page


def test_the_record_and_the_page_hold_the_exact_command(grid: Path, store: LocalStore, tmp_path: Path) -> None:
    done(store)
    options = ["--only", "defense=sft", "--set", "asr_floor=80", "--set", "resources.cpus=1"]
    for each in ("none", "sft"):
        finish(store, cell(defense=each, metrics=METRICS, asr_floor=80), {"asr": 50}, {"asr": 7})
    assert run(grid, store, *options).exit_code == 0
    folder = tmp_path / "results/small--asr_floor=80--only-defense=sft"
    command = f"sande-bench run {grid} --set asr_floor=80 --set resources.cpus=1 --only defense=sft"
    values = json.loads((folder / "run.json").read_text())
    assert (values["command"], values["complete"], values["recorded"]) == (command, True, True)
    assert f"which `{command}` made with the code named here." in (folder / "README.md").read_text()
    assert {row["defense"] for row in pq.read_table(folder / "rows.parquet").to_pylist()} == {"sft"}
    assert not (tmp_path / "results/small").exists()


def test_plan_names_the_folder_of_the_run(grid: Path, store: LocalStore, tmp_path: Path) -> None:
    places = ["--store", str(store.root), "--results", str(tmp_path / "results")]
    said = CliRunner().invoke(app, ["plan", str(grid), *places, "--set", "seed=1", "--only", "defense=none"]).stdout
    assert " ".join(said.split()).endswith(f"results {tmp_path}/results/small--seed=1--only-defense=none")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_wrong_compute_type_is_said_before_anything_starts(
    command: str, grid: Path, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", "fp16")
    line = mistake(command, grid, "--store", store.root, "--results", tmp_path / "results")
    assert line.startswith("sande-bench: SANDE_COMPUTE_TYPE: 'fp16' is not a compute type; set it to bf16 or fp32")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"command": 3}', '{"command": "a\\nb"}', '{"other": "x"}', ""])
def test_a_damaged_record_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / record.NAME).write_text(content)
    assert record.read(tmp_path) is None


def test_a_command_is_quoted_for_a_shell() -> None:
    made = record.command(Path("grids/my grid.yaml"), ["data={name: a}"], ["defense=sft"], "tiny")
    assert made == "sande-bench run 'grids/my grid.yaml' --scale tiny --set 'data={name: a}' --only defense=sft"


def test_outcomes_of_a_cell_whose_settings_are_still_searched_are_not_shown(store: LocalStore) -> None:
    made = finish(store, of("sft"), {"asr": 50}, {"asr": 7})
    errors = {made.defense_key: UNFINISHED}
    known = list(rows.build_rows("hand", [made], store, errors))
    assert {row["status"] for row in known} == {"ok"}, "its model is to be made again, and its numbers are there"
    unknown = list(rows.build_rows("hand", [made], store, errors, unknown={made.id}))
    assert {row["status"] for row in unknown} == {"not_run"}


def test_unfinished_cells_are_left_out_of_leaderboards_and_entries(store: LocalStore, tmp_path: Path) -> None:
    half_done(store)
    sft = of("sft")
    folder = report_folder(store, tmp_path / "r", of("none"), sft, errors={stage(sft, "evaluate").key: UNFINISHED})
    board = rank(by_cell(read_rows(folder).to_pylist()))
    assert (board.standings, board.left_out) == ((), 1)
    assert "1 cell that failed or is not finished" in notes(board)[-1]
    with pytest.raises(UserError, match="defense 'sft': cells: list should have at least 1 item"):
        submission.make(folder, "sft", rehearsal=True)


def test_a_misfit_is_a_row_with_its_error_and_stops_nothing_else(
    grid_file: GridFile, place: Path, store: LocalStore
) -> None:
    aims = {"attack": {"name": "sentence_trigger", "objective": "language"}}
    grid = grid_file(metrics=METRICS, sweep={"defense": ["none", "sande"]}, asr_floor=0, **aims)
    finish(store, cell(metrics=METRICS, asr_floor=0, **aims), {"asr": 50, "builtin-choice": 20})
    done = run(grid, store)
    assert done.output.count("defense sande: it must know the response that is planted") >= 1
    assert "0 to run" in done.output, "the misfit is not run"
    found = {(row["defense"], row["status"]): row for row in read_rows(place).to_pylist()}
    assert set(found) == {("none", "ok"), ("sande", "failed")}
    row = found["sande", "failed"]
    assert row["failure"] == "user's mistake"
    assert row["error"].startswith("defense sande: it must know the response that is planted, and answers of the")
    assert (row["objective"], row["response"]) == ("language", None)


def test_results_of_another_grid_with_the_same_name_stay(
    grid: Path, store: LocalStore, place: Path, tmp_path: Path
) -> None:
    done(store)
    assert run(grid, store).exit_code == 0
    before = files(place)
    finish(store, cell(attack_seed=9, metrics=METRICS), {"asr": 50, "builtin-choice": 20})
    other = tmp_path / "other/small.yaml"
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(SMALL | {"metrics": METRICS, "attack_seed": 9}))
    places = ["--store", store.root, "--results", place.parent]
    line = mistake("run", other, *places)
    assert line == (
        f"sande-bench: {place}: holds results of another grid, {grid}; set another --results, rename {other}, or "
        f"remove {place}/rows.parquet to replace them"
    )
    assert files(place) == before
    grid.write_text(other.read_text())  # an edited grid
    assert invoke("run", grid, *places).exit_code == 0
    assert files(place)["rows.parquet"] != before["rows.parquet"]
    moved = grid.rename(tmp_path / "other/small.yaml")
    assert invoke("run", moved, *places).exit_code == 0


def test_results_of_a_moved_grid_with_a_search_are_not_those_of_another(
    grid_file: GridFile, store: LocalStore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"search": {"trials": 2, "space": {"defense.training.learning_rate": [1e-4, 1e-5]}}}
    found = cell(defense=SFT_FAST, metrics=["asr"])  # as a search found it, so no cell of the file has its id
    report_folder(store, place, finish(store, found, {"asr": 50}, {"asr": 50}))
    record.write(record.now("sande-bench run elsewhere/small.yaml", "1", complete=True), place)

    def opened(place: str) -> None:
        raise UserError("it went on")

    monkeypatch.setattr(pipeline, "open_store", opened)
    for more, said in (({}, "holds results of another grid"), (section, "it went on")):
        path = grid_file(metrics=["asr"], sweep={"defense": ["sft"]}, **more)
        with pytest.raises(UserError, match=said):
            pipeline.run(pipeline.Request(path, results=str(place.parent)), print, print)
