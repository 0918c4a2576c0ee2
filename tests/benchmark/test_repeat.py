"""Cells that are trained again: which are drawn, and what is said of their numbers. Trainings are filled in by hand."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark import repeat
from benchmark.execution import driver, provenance
from benchmark.grid.cell import Cell
from benchmark.plan import preflight
from benchmark.plan.failures import UNFINISHED
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import ACCURACY, cell, finish, invoke, mistake, report_folder, run_options

METRICS = ["asr", ACCURACY]
SEEDS = (0, 1, 2, 3)
VICTIM, FOUND = {"asr": 50, "builtin-choice": 31}, {"asr": 3, "builtin-choice": 30}


def of(seed: int) -> Cell:
    return cell(defense="osft", metrics=METRICS, attack_seed=seed)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The results of four cells."""
    store = LocalStore(tmp_path / "first store")
    return report_folder(store, tmp_path / "first", *(finish(store, of(seed), VICTIM, FOUND) for seed in SEEDS))


def begin(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> str:
    """Interrupt a repetition before its first stage; return what is said."""
    with monkeypatch.context() as context:
        context.setattr(preflight, "check", lambda *_: None)
        context.setattr(driver, "run", lambda plan, *_, **__: dict.fromkeys((s.key for s in plan.missing), UNFINISHED))
        done = invoke("repeat", folder, *run_options(folder.parent), *options)
    assert done.exit_code == 130, done.output
    return done.stderr


def numbers(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("results/*/repeat.parquet")
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_the_same_numbers_hold(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the same command with --seed 5 continues" in begin(first, monkeypatch, "--seed", 5, "--share", 0.5)
    store = LocalStore(tmp_path / "store")
    for seed in SEEDS:
        finish(store, of(seed), VICTIM, FOUND)
    done = invoke("repeat", first, *run_options(tmp_path), "--seed", 5, "--share", 0.5)
    assert done.exit_code == 0, done.output
    made = numbers(tmp_path)
    assert len({one["cell"] for one in made}) == 2
    assert [(one["metric"], one["value"], one["again"], one["within"]) for one in made[:3]] == [
        ("asr", 6.0, 6.0, True),
        ("asr_starts_with", 0.0, 0.0, True),
        ("builtin-choice", 60.0, 60.0, True),
    ]
    (page,) = tmp_path.glob("results/*/repeat.md")
    text = page.read_text()
    assert (
        "2 of 4 cells trained again (--seed 5): 6 of 6 numbers lie within the interval of their row, 6 are the same"
        in text
    )
    assert "| sentence_trigger, seed " in text


@pytest.mark.parametrize(("successes", "within"), [(8, True), (9, False)])  # 3 of 50: at most 16.2 % (Wilson)
def test_a_number_outside_its_interval_is_told(
    successes: int, within: bool, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(first, monkeypatch, "--seed", 5, "--share", 1)
    store = LocalStore(tmp_path / "store")
    for seed in SEEDS:
        finish(store, of(seed), VICTIM, FOUND | {"asr": successes if seed == 2 else 3})
    done = invoke("repeat", first, *run_options(tmp_path), "--seed", 5, "--share", 1)
    assert done.exit_code == (0 if within else 1)
    assert [one["attack_seed"] for one in numbers(tmp_path) if not one["within"]] == ([] if within else [2])


def test_a_number_that_is_missing_does_not_hold(first: Path) -> None:
    rows = pq.read_table(first / "rows.parquet")
    ids = rows["cell"].unique().to_pylist()
    found = repeat.compare(rows, rows.slice(0, 0), {ids[0]: "other"})
    assert [(one.again, one.within) for one in found] == [(None, False)] * 3
    made = repeat.Repetition(found, 1, 4, 5, "page")
    assert not made.holds
    assert made.summary.endswith("0 of 3 numbers lie within the interval of their row, 0 are the same")


def test_a_seed_draws_a_share_of_the_measured_cells(first: Path) -> None:
    rows = pq.read_table(first / "rows.parquet")
    ids = set(rows["cell"].unique().to_pylist())
    assert repeat.draw(rows, 0.3, 7) == repeat.draw(rows, 0.3, 7)
    assert len(repeat.draw(rows, 0.3, 7)) == 2
    assert len(repeat.draw(rows, 0.03, 7)) == 1
    assert {one for seed in range(40) for one in repeat.draw(rows, 0.03, seed)} == ids
    lost = rows["cell"][0].as_py()
    states = ["failed" if one == lost else "ok" for one in rows["cell"].to_pylist()]
    broken = rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(states))
    assert set(repeat.draw(broken, 1, 7)) == ids - {lost}


def test_a_store_with_the_first_run_is_refused(first: Path, tmp_path: Path) -> None:
    said = mistake("repeat", first, "--store", tmp_path / "first store", "--results", tmp_path / "results")
    assert said.endswith("of the stages, which would not be trained again; use a new one")
    assert not (tmp_path / "results").exists()


def test_the_store_of_the_first_run_is_refused_after_a_repetition_in_another(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(first, monkeypatch, "--seed", 5)
    said = mistake("repeat", first, "--seed", 5, "--store", tmp_path / "first store", "--results", tmp_path / "results")
    assert said.endswith("of the stages, which would not be trained again; use a new one")
    store = LocalStore(tmp_path / "store")
    for seed in SEEDS:
        finish(store, of(seed), VICTIM, FOUND)
    monkeypatch.chdir(tmp_path)
    done = invoke("repeat", first, "--seed", 5, "--store", "store", "--results", "results")
    assert done.exit_code == 0, done.output  # it continues in its own store, whatever the path of that is


def test_other_code_than_today_s_is_told_and_no_mistake(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "code_version", lambda: "1.2.4")
    rows = pq.read_table(first / "rows.parquet")
    ids = rows["cell"].unique().to_pylist()
    told = (
        "these cells were trained by the code 1.2.3, and today's is 1.2.4: a training whose code has changed since "
        "gives other numbers"
    )
    assert repeat.of_other_code(rows, ids) == told
    begin(first, monkeypatch, "--seed", 5, "--share", 0.5)
    store = LocalStore(tmp_path / "store")
    for seed in SEEDS:
        finish(store, of(seed), VICTIM, FOUND)
    done = invoke("repeat", first, *run_options(tmp_path), "--seed", 5, "--share", 0.5)
    assert done.exit_code == 0, done.output
    assert told in done.stdout
    monkeypatch.setattr(provenance, "code_version", lambda: "1.2.3")
    assert repeat.of_other_code(rows, ids) == ""


def test_a_folder_that_is_no_store_is_refused_before_anything_is_written(first: Path, tmp_path: Path) -> None:
    said = mistake("repeat", first, "--store", first, "--results", tmp_path / "results")
    assert "holds files but is not a store" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--share", 0), "--share 0: not a share of the cells; set it above 0, and up to 1"),
        (("--set", "attack.poison_rate=0"), "a repetition changes no cell; set resources.… alone"),
        (("--results", "s3://bucket/results"), "use a folder of this machine"),
    ],
)
def test_options_that_make_no_repetition_are_refused(
    options: tuple[object, ...], said: str, first: Path, tmp_path: Path
) -> None:
    assert said in mistake("repeat", first, *run_options(tmp_path), *options)
