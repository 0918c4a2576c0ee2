"""Which models a run keeps: a dropped one is not made again while nothing reads it, and its rows stay."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.forecast import disk
from benchmark.grid.cell import Cell
from benchmark.io import units
from benchmark.plan import plan, retention
from benchmark.plan.plan import make_plan
from benchmark.plan.retention import Keeper
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, SFT_FAST, SFT_SLOW, cell, finish, outcomes_of, report_folder, rows_of

ASR = {"asr": 50}


@pytest.fixture
def cells(store: LocalStore) -> list[Cell]:
    """Two defenses of one victim, all done."""
    return [finish(store, cell(defense=defense), ASR, ASR) for defense in (SFT_SLOW, SFT_FAST)]


def sweep(store: LocalStore, cells: list[Cell], keep: str) -> None:
    plan = make_plan(cells, store)
    Keeper(plan.stages.values(), plan.done, store, keep).sweep()


def models(store: LocalStore, of: Cell) -> tuple[bool, bool]:
    """Whether victim and defended model are in the store."""
    return store.has("attack", of.attack_key), store.has("defend", of.defense_key)


def missing(store: LocalStore, *cells: Cell) -> list[str]:
    return [stage.kind for stage in plan.make_plan(cells, store).missing]


@pytest.mark.parametrize(
    ("keep", "left"), [("all", (True, True)), ("victims", (True, False)), ("none", (False, False))]
)
def test_what_is_dropped_counts_as_done_and_has_the_same_rows(
    store: LocalStore, cells: list[Cell], keep: str, left: tuple[bool, bool]
) -> None:
    rows, outcomes = rows_of(store, *cells), outcomes_of(store, *cells)
    sweep(store, cells, keep)
    assert [models(store, each) for each in cells] == [left, left]
    assert missing(store, *cells) == []
    assert rows_of(store, *cells) == rows
    assert outcomes_of(store, *cells) == outcomes


@pytest.mark.parametrize(
    ("keep", "again"),
    [("victims", ["evaluate", "defend", "evaluate"]), ("none", ["attack", "evaluate", "defend", "evaluate"])],
)
def test_a_new_metric_makes_anew_what_it_reads(
    store: LocalStore, cells: list[Cell], keep: str, again: list[str]
) -> None:
    sweep(store, cells, keep)
    asked = cell(defense=SFT_FAST, metrics=["asr", ACCURACY])
    assert missing(store, asked) == again
    assert missing(store, *cells) == []


def test_a_new_defense_makes_its_victim_anew_and_no_other_defense(store: LocalStore, cells: list[Cell]) -> None:
    sweep(store, cells, "none")
    assert missing(store, *cells, cell(defense="osft")) == ["attack", "defend", "evaluate"]


def test_a_model_that_is_needed_in_any_case_is_missing(store: LocalStore, cells: list[Cell]) -> None:
    sweep(store, cells, "none")
    victim = plan.victim_of(cells[0])
    made = plan.make_plan([victim], store, needed=[victim.attack_key])
    assert [stage.kind for stage in made.missing] == ["attack"]


def test_a_model_made_anew_takes_the_place_of_what_was_left_of_it(store: LocalStore, cells: list[Cell]) -> None:
    sweep(store, cells, "victims")
    finish(store, cells[0], ASR, ASR)
    assert models(store, cells[0]) == (True, True)
    sweep(store, cells, "victims")
    assert models(store, cells[0]) == (True, False)
    assert missing(store, *cells) == []


def test_a_model_goes_when_its_last_reader_is_done_and_not_before(store: LocalStore) -> None:
    cells = [cell(defense=SFT_FAST), cell(defense=SFT_FAST, metrics=["asr", ACCURACY])]
    plan = make_plan(cells, store)
    keeper = Keeper(plan.stages.values(), plan.done, store, "none")
    finish(store, cells[1], ASR, ASR)
    seen = []
    for stage in plan.missing:
        keeper.ended(stage)
        seen.append((stage.kind, stage.needs, models(store, cells[0])))
    assert seen[0][2] == (True, True)
    victims = [at for at, (kind, needs, _) in enumerate(seen) if cells[0].attack_key in needs]
    defended = [at for at, (kind, needs, _) in enumerate(seen) if cells[0].defense_key in needs]
    assert len(defended) == 2
    assert [left[0] for _, _, left in seen] == [at < max(victims) for at in range(len(seen))]
    assert [left[1] for _, _, left in seen] == [at < max(defended) for at in range(len(seen))]


def test_what_a_failed_stage_needs_is_kept(store: LocalStore) -> None:
    of = cell(defense=SFT_FAST)
    plan = make_plan([of], store)
    finish(store, of, ASR, ASR)
    keeper = Keeper(plan.stages.values(), plan.done, store, "none")
    for stage in plan.missing:
        if not (stage.kind == "evaluate" and stage.needs == (of.defense_key,)):
            keeper.ended(stage)
    assert models(store, of) == (False, True)


def test_a_plan_says_what_stays_on_disk(store: LocalStore) -> None:
    finish(store, cell(defense=SFT_FAST), ASR, ASR)
    plan = make_plan([cell(defense=SFT_FAST), cell(defense=SFT_SLOW)], store)
    assert disk.summary(plan, store).startswith("Disk: 3 models take ")
    line = disk.summary(plan, store, "victims")
    models = [("attack", plan.cells[0].attack_key), ("defend", plan.cells[0].defense_key)]
    there = sum(store.size(*model) for model in models)
    assert line.startswith("Disk: 2 models (with --keep-models victims; plus those that are being measured) take ")
    assert f"take {units.format_bytes(there)}; " in line, "a second defended model does not stay"


def test_a_dropped_model_takes_no_disk_and_says_nothing_of_new_ones(store: LocalStore, cells: list[Cell]) -> None:
    victim = store.size("attack", cells[0].attack_key)
    model = store.size("defend", cells[0].defense_key)
    retention.drop(store, "defend", cells[0].defense_key)
    more = make_plan([*cells, cell(defense={**SFT_FAST, "training": {"epochs": 2}})], store)
    for keep, count in (("all", 4 - 1), ("victims", 2)):
        line = disk.summary(more, store, keep)
        expected = victim + model + (model if keep == "all" else 0)
        assert line.startswith(f"Disk: {count} models ")
        assert f" take {units.format_bytes(expected)}; {units.format_bytes(victim + model)} of it are there" in line
    retention.drop(store, "defend", cells[1].defense_key)
    assert disk.summary(make_plan(cells, store), store).startswith(
        f"Disk: 1 model takes {units.format_bytes(victim)}; {units.format_bytes(victim)} of it are there"
    )


def test_an_unknown_word_is_a_mistake_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^--keep-models some: no such choice; use one of: all, victims, none$"):
        retention.check("some")


def test_a_report_is_up_to_date_after_its_models_were_dropped(
    store: LocalStore, cells: list[Cell], tmp_path: Path, grid_file: Callable[..., Path]
) -> None:
    from benchmark.grid.load import load_grid
    from benchmark.report import freshness

    loaded = load_grid(grid_file(sweep={"defense": [SFT_SLOW, SFT_FAST]}))
    assert {each.id for each in loaded.cells} == {each.id for each in cells}
    sweep(store, cells, "victims")
    folder = report_folder(store, tmp_path / "report", *cells)
    made_of = freshness.fingerprint(loaded, plan.make_plan(cells, store), store)
    freshness.record(folder, made_of, ["text"], store)
    assert freshness.cached_output(
        folder, freshness.fingerprint(loaded, plan.make_plan(cells, store), store), store
    ) == ["text"]
