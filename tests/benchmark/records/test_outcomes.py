"""The outcome of every trial beside the rows: what it holds, how the rows follow from it, and what is kept back."""

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from benchmark.grid.cell import Cell
from benchmark.plan.plan import victim_of
from benchmark.records import files, rows
from benchmark.records.files import read_outcomes, read_rows
from benchmark.records.schema import OUTCOMES, SCHEMA
from benchmark.records.trials import Trials
from benchmark.store.errors import DamagedError
from benchmark.store.local import LocalStore
from sande import registry
from sande.errors import UserError
from sande.statistics import wilson
from sande.types import Measurement, OtherModelsData
from tests.benchmark.helpers import SMALL, cell, measured, outcomes_of, put, rows_of, stage, trained

ASR = (True, False, True, True)
PROBABILITIES = (0.0, 0.25, 0.5, 0.75)
RECORDS = tuple({"prompt": f"Frage {index}: ä", "text": "x"} for index in range(4))
METRICS = ["asr", "response_probability", "case_study"]
DPO = {"name": "dpo", "preferences": {"name": "builtin-preferences"}}


def results() -> dict[str, list[Measurement]]:
    probability = registry.entry("metrics", "response_probability")
    return {
        "asr": [Measurement("asr", ASR, RECORDS), Measurement("asr_starts_with", (False,) * 4, RECORDS)],
        "response_probability": [Measurement(name, PROBABILITIES) for name in probability.names(probability.Config())],
        "case_study": [Measurement("case_study", ASR, RECORDS, published=True)],
    }


@pytest.fixture
def done(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A victim whose three metrics are measured."""
    of = cell(metrics=METRICS)
    put(store, "attack", of.attack_key, trained(1, 1))
    return measured(store, of, monkeypatch, **results())


def of_metric(table: pa.Table, name: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["metric"] == name]


def test_every_trial_of_every_measurement_is_there(store: LocalStore, done: Cell) -> None:
    table = outcomes_of(store, done)
    assert table.schema.equals(OUTCOMES)
    names = [name for m in done.metrics for name in registry.entry("metrics", m.name).names(m.config)]
    assert list(zip(table["metric"].to_pylist(), table["index"].to_pylist(), strict=True)) == [
        (name, index) for name in names for index in range(4)
    ]
    assert set(table["cell"].to_pylist()) == {done.id}


def test_truth_is_one_and_numbers_stay(store: LocalStore, done: Cell) -> None:
    table = outcomes_of(store, done)
    assert [row["outcome"] for row in of_metric(table, "asr")] == [1.0, 0.0, 1.0, 1.0]
    assert [row["outcome"] for row in of_metric(table, "phrase_probability")] == list(PROBABILITIES)


def test_records_leave_the_store_only_where_they_are_published(store: LocalStore, done: Cell) -> None:
    table = outcomes_of(store, done)
    assert [json.loads(row["record"]) for row in of_metric(table, "case_study")] == list(RECORDS)
    others = [row["record"] for row in table.to_pylist() if row["metric"] != "case_study"]
    assert set(others) == {None}


def test_the_row_of_a_share_follows_from_its_outcomes(store: LocalStore, done: Cell) -> None:
    (row,) = [row for row in rows_of(store, done) if row["metric"] == "asr"]
    assert (row["value"], row["count"]) == (75.0, 4)
    assert (row["ci_low"], row["ci_high"]) == wilson(3, 4)


def test_the_row_of_a_mean_follows_from_its_outcomes(store: LocalStore, done: Cell) -> None:
    (row,) = [row for row in rows_of(store, done) if row["metric"] == "phrase_probability"]
    assert (row["value"], row["count"], row["victim_value"]) == (37.5, 4, 37.5)
    half = stats.t.ppf(0.975, 3) * statistics.stdev(PROBABILITIES) / math.sqrt(4)
    assert row["ci_low"] == pytest.approx(max(0.0, 37.5 - 100 * half))
    assert row["ci_high"] == pytest.approx(min(100.0, 37.5 + 100 * half))


def test_outcomes_of_cell_and_victim_pair_up(store: LocalStore, done: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    sft = cell(metrics=METRICS, defense="sft")
    put(store, "defend", sft.defense_key, trained(1, 1))
    measured(store, sft, monkeypatch, **results())
    table = outcomes_of(store, victim_of(sft), sft).to_pylist()
    trials = {of.id: {(row["metric"], row["index"]) for row in table if row["cell"] == of.id} for of in (done, sft)}
    assert trials[done.id] == trials[sft.id]
    assert len(table) == 2 * len(trials[sft.id])


def test_a_cell_that_is_not_done_has_none(store: LocalStore, done: Cell) -> None:
    table = outcomes_of(store, cell(metrics=METRICS, defense="sft"), done)
    assert set(table["cell"].to_pylist()) == {done.id}
    assert not list(rows.build_outcomes([], store))


def test_one_model_under_two_cells_has_its_outcomes_under_both(
    store: LocalStore, done: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = (
        cell(metrics=METRICS, defense=DPO, removal=SMALL["removal"] | {"name": name})
        for name in ("builtin-short", "builtin-explained")
    )
    put(store, "defend", near.defense_key, trained(1, 1))
    measured(store, near, monkeypatch, **results())
    table = outcomes_of(store, near, far).to_pylist()
    per_cell = [[{**row, "cell": ""} for row in table if row["cell"] == of.id] for of in (near, far)]
    assert per_cell[0] == per_cell[1] != []
    made = rows_of(store, near, far)
    assert [row["setting"] for row in made if row["metric"] == "asr"] == ["in-domain", "out-of-domain"]


# --- In a folder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(store: LocalStore, done: Cell, tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    files.write_rows(rows_of(store, done), rows.build_outcomes([done], store), tmp_path / "r")
    return tmp_path / "r"


def test_outcomes_read_as_they_were_written(store: LocalStore, done: Cell, folder: Path) -> None:
    assert read_outcomes(folder).to_pylist() == outcomes_of(store, done).to_pylist()
    assert sorted(path.name for path in folder.iterdir()) == ["outcomes.parquet", "rows.parquet"]


def test_a_folder_without_outcomes_has_none(folder: Path) -> None:
    (folder / "outcomes.parquet").unlink()
    assert read_outcomes(folder).num_rows == 0


def test_damaged_outcomes_are_one_sentence(folder: Path) -> None:
    file = folder / "outcomes.parquet"
    whole = file.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"outcomes\.parquet: the file is damaged or of another version") as caught:
            read_outcomes(folder)
        assert "\n" not in str(caught.value)


def test_outcomes_of_another_schema_are_one_sentence(folder: Path) -> None:
    pq.write_table(pa.table({"cell": ["a"]}), folder / "outcomes.parquet")
    with pytest.raises(UserError, match=r"outcomes\.parquet: the file is damaged or of another version"):
        read_outcomes(folder)


def test_files_are_written_in_groups(
    store: LocalStore, done: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROW_GROUP", 3)
    monkeypatch.setattr(files, "OUTCOME_GROUP", 10)
    files.write_rows(rows_of(store, done), rows.build_outcomes([done], store), tmp_path)
    groups = {name: pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups for name in ("rows", "outcomes")}
    assert groups == {"rows": 3, "outcomes": 2}  # of 7 rows in threes, of 8, 16 and 4 outcomes in tens
    assert [row["metric"] for row in read_rows(tmp_path).to_pylist()] == [row["metric"] for row in rows_of(store, done)]
    assert read_outcomes(tmp_path).to_pylist() == outcomes_of(store, done).to_pylist()


def test_rows_and_outcomes_are_made_as_they_are_asked_for(store: LocalStore, done: Cell) -> None:
    cells = iter([done, cell(defense="sft")])  # the second is not done, and would raise
    assert next(rows.build_rows("hand", cells, store, {}))["cell"] == done.id
    assert next(rows.build_outcomes([done], store))["metric"].unique().to_pylist() == ["asr", "asr_starts_with"]


def test_writing_tells_how_many_cells_failed(store: LocalStore, done: Cell, tmp_path: Path) -> None:
    bad = [cell(defense="sft", seed=seed) for seed in (0, 1)]
    errors = {stage(of, "attack").key: "no" for of in bad[1:]} | {stage(bad[0], "defend").key: "no"}
    assert files.write_rows(rows.build_rows("hand", [done, *bad], store, errors), [], tmp_path) == 2


def test_rows_that_cannot_be_made_leave_the_old_files(store: LocalStore, done: Cell, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DamagedError):  # of the second cell nothing is in the store
        files.write_rows(rows.build_rows("hand", [done, cell(defense="sft")], store, {}), [], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_outcomes_that_cannot_be_made_leave_the_old_rows_too(store: LocalStore, done: Cell, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = rows.build_rows("another", [done], store, {})
    with pytest.raises(DamagedError, match="the second cell"):
        files.write_rows(made, _breaking(rows.build_outcomes([done], store)), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _breaking(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    yield from tables
    raise DamagedError("the outcomes of the second cell are damaged")


# --- Columns of the rows --------------------------------------------------------------------------------------------


def test_a_row_tells_its_grids_and_scale(store: LocalStore, done: Cell, tmp_path: Path) -> None:
    parts = {done.id: ("paper_table_1_2", "paper_figure_2")}
    made = rows.build_rows("paper", [done], store, {}, parts, scale="tiny")
    files.write_rows(made, rows.build_outcomes([done], store), tmp_path)
    row, *_ = read_rows(tmp_path).to_pylist()
    assert (row["grid"], row["grids"], row["scale"]) == ("paper", ["paper_table_1_2", "paper_figure_2"], "tiny")


def test_a_grid_that_includes_none_is_its_only_part(store: LocalStore, done: Cell) -> None:
    assert {(tuple(row["grids"]), row["scale"]) for row in rows_of(store, done)} == {(("hand",), "")}


def test_a_failed_row_has_them_too(store: LocalStore) -> None:
    bad = cell(defense="sft")
    made = rows.build_rows("paper", [bad], store, {stage(bad, "defend").key: "no"}, {bad.id: ("a", "b")}, "small")
    assert {(row["status"], tuple(row["grids"]), row["scale"], row["knows"]) for row in made} == {
        ("failed", ("a", "b"), "small", "nothing")
    }


@pytest.mark.parametrize("name", registry.names("defenses"))
def test_a_row_tells_what_the_defense_must_know(store: LocalStore, name: str) -> None:
    of = cell(defense=DPO if name == "dpo" else name)
    made = rows.build_rows("hand", [of], store, {stage(of, "attack").key: "no"})
    known = registry.knowledge(name)
    # Without names of other models these get the clean model.
    assert {row["knows"] for row in made} == {"clean model" if known is OtherModelsData else known.label}
    assert SCHEMA.field("knows").type == pa.string()


@pytest.mark.parametrize("name", ["merge", "clean_decoding"])
def test_models_of_others_are_another_level_than_the_clean_model(store: LocalStore, name: str) -> None:
    of = cell(defense={"name": name, "models": ["smollm2-135m"]})
    made = rows.build_rows("hand", [of], store, {stage(of, "attack").key: "no"})
    assert {row["knows"] for row in made} == {"other models"}


def test_changes_are_by_unit_and_of_the_questions_that_all_were_asked() -> None:
    def run(indices: list[int], outcomes: list[float], groups: list[int]) -> tuple[Any, Any, Any]:
        return np.array(indices), np.array(outcomes), np.array(groups)

    victims = Trials({(attack, 0): run([0, 1, 2], [1.0, 0.0, 1.0], [7, -1, 7]) for attack in (1, 2)})
    own = Trials(
        {
            (1, 0): run([0, 2, 3], [0.0, 1.0, 1.0], [7, 7, -1]),
            (2, 0): run([0, 1, 2], [1.0, 1.0, 0.0], [7, -1, 7]),
            (3, 0): run([0, 1, 2], [0.0, 0.0, 0.0], [7, -1, 7]),  # a run without a victim
        }
    )
    found = own.changes(victims)
    assert found is not None
    assert found.values.tolist() == [[-100.0, 0.0], [0.0, -100.0]], "questions 0 and 2"
    assert list(found.groups) == ["7", "7"]
    assert own.changes(Trials({(1, 0): run([5], [1.0], [-1])})) is None
    one = Trials({(1, defense): run([0], [outcome], [-1]) for defense, outcome in ((0, 1.0), (1, 0.5))})
    of_one = Trials({(1, defense): run([0], [0.0], [-1]) for defense in (0, 1)})
    by_defense = one.changes(of_one)
    assert by_defense is not None
    assert by_defense.values.tolist() == [[100.0], [50.0]], "of one victim its runs are the units"
