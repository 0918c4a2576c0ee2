"""Parts of a defense in plans, forecasts, retention and rows; nothing is trained here."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.cli.run import _counts
from benchmark.execution.searcher import StageSearcher
from benchmark.forecast import disk
from benchmark.forecast.cost import estimate, pieces
from benchmark.forecast.measured import PAPER, Costs, samples_of
from benchmark.grid.cell import Cell
from benchmark.plan import maintenance
from benchmark.plan.failures import NON_FINITE, Failure
from benchmark.plan.plan import Plan, make_plan, stages_of
from benchmark.plan.retention import Keeper, drop
from benchmark.plan.schedule import Queue, side_by_side, simulate
from benchmark.plan.stage import Stage
from benchmark.store.leases import Leases
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import ACCURACY, cell, finish, invoke, measure, put, rows_of, stage, trained

pytestmark = pytest.mark.usefixtures("ensemble")
ASR = {"asr": 50}
COSTS = {"seconds": 20.0, "tokens": 700, "peak_memory_bytes": 5 * 2**30, "device": "abacus", "compute_type": "fp32"}


def ensemble(models: int = 2, **changes: Any) -> Cell:
    return cell(**{"defense": {"name": "ensemble", "models": models}, **changes})


def parts_of(of: Cell) -> list[Stage]:
    return [stage for stage in stages_of(of) if stage.kind == "part"]


def kinds(plan: Plan) -> list[str]:
    return [stage.kind for stage in plan.missing]


def put_part(store: LocalStore, part: Stage) -> None:
    put(
        store,
        "part",
        part.key,
        {"kind": "part", "settings": dict(part.settings), "part": part.part, "started_at": "2026", **COSTS},
    )


def test_a_plan_has_each_part_before_its_defense_and_not_all_parts_first(store: LocalStore) -> None:
    plan = make_plan([ensemble(), ensemble(3)], store)
    one, other = (["part"] * 2, ["part"] * 3)
    assert kinds(plan) == ["attack", "evaluate", *one, "defend", "evaluate", *other, "defend", "evaluate"]
    assert _counts(plan.missing) == "1 attack, 5 part, 2 defend, 3 evaluate"
    assert _counts(make_plan([cell(defense="sft")], store).missing) == "1 attack, 1 defend, 2 evaluate"
    first = parts_of(ensemble())[0]
    assert first.label == f"part tiny ensemble model_0 {first.key[:8]}"
    assert Stage.from_json(first.to_json()) == first


def test_a_plan_s_table_names_parts_once(grid_file: Any, store: LocalStore) -> None:
    grid = grid_file(defense={"name": "ensemble", "models": 3})
    put(store, "attack", ensemble(3).attack_key, trained(1.0, 1))
    said = " ".join(invoke("plan", grid, "--store", store.root).output.split())
    assert "part, defend, evaluate" in said
    assert "to run: 0 attack, 3 part, 1 defend, 2 evaluate" in said


def test_the_key_of_a_part_depends_on_what_the_defense_s_does_and_on_its_name() -> None:
    of = ensemble()
    others = [ensemble(3), ensemble(defense_seed=1), ensemble(removal={"name": "builtin-short", "rows": 15})]
    keys = {each.part_key("model_0") for each in (of, *others)} | {of.part_key("model_1"), of.defense_key}
    assert len(keys) == 6
    same = [ensemble(metrics=["asr", ACCURACY]), ensemble(data={"name": "builtin-short", "rows": 16, "test_rows": 9})]
    assert {each.part_key("model_0") for each in same} == {of.part_key("model_0")}


def test_a_part_that_is_there_is_not_made_again(store: LocalStore) -> None:
    of = ensemble()
    put(store, "attack", of.attack_key, trained(1.0, 1))
    put_part(store, parts_of(of)[1])
    (left,) = [stage for stage in make_plan([of], store).missing if stage.kind == "part"]
    assert left.part == "model_0"


def test_parts_are_made_only_for_a_defense_that_is_to_be_made(store: LocalStore) -> None:
    of = finish(store, ensemble(), ASR, ASR)
    assert kinds(make_plan([of], store)) == []
    drop(store, "defend", of.defense_key)
    assert kinds(make_plan([of], store)) == []
    wider = ensemble(metrics=["asr", ACCURACY])
    assert kinds(make_plan([wider], store)) == ["evaluate", "part", "part", "defend", "evaluate"]


def test_parts_go_when_their_last_defense_is_done_and_not_before(store: LocalStore) -> None:
    of = ensemble()
    plan = make_plan([of], store)
    finish(store, of, ASR, ASR)
    for part in parts_of(of):
        put_part(store, part)
    keeper = Keeper(plan.stages.values(), plan.done, store, "all")
    assert kinds(plan) == ["attack", "evaluate", "part", "part", "defend", "evaluate"]
    for ended, are_kept in zip(plan.missing, [True] * 4 + [False] * 2, strict=True):
        keeper.ended(ended)
        assert [store.has("part", part.key) for part in parts_of(of)] == [are_kept] * 2
    assert store.has("defend", of.defense_key)
    assert store.manifest("dropped", parts_of(of)[0].key)["seconds"] == 20.0, "forecasts learn from it"
    assert kinds(make_plan([of], store)) == []


def test_parts_of_a_run_that_was_interrupted_before_it_dropped_them_are_swept(store: LocalStore) -> None:
    of = finish(store, ensemble(), ASR, ASR)
    waiting = parts_of(ensemble(3))[0]
    for part in (*parts_of(of), waiting):
        put_part(store, part)
    plan = make_plan([of, ensemble(3)], store)
    Keeper(plan.stages.values(), plan.done, store, "all").sweep()
    assert store.keys("part") == [waiting.key]


def test_parts_run_side_by_side_and_the_defense_after_them(store: LocalStore) -> None:
    of = ensemble(4)
    plan = make_plan([of], store)
    took = {"attack": 10.0, "part": 5.0, "defend": 1.0, "evaluate": 0.0}
    for slots, share, wall in ((1, 1, 10 + 4 * 5 + 1), (1, 2, 10 + 2 * 5 + 1), (4, 1, 10 + 5 + 1)):
        made = simulate(plan, slots, lambda stage: took[stage.kind], side_by_side(share))
        assert made.wall == pytest.approx(wall)


def test_a_part_that_another_run_dropped_with_its_defense_done_is_not_made_again(store: LocalStore) -> None:
    of, said = ensemble(), list[str]()
    finish(store, cell(), ASR, ASR)
    plan = make_plan([of], store)

    def suggested() -> str:
        leases = Leases(store.lease_backend(), said.append)
        try:
            searcher = StageSearcher(Queue(plan, 1), store, None, said.append, 0.0, leases)
            return Stage.from_json(searcher.suggest("0")["stage"]).kind  # type: ignore[index]
        finally:
            leases.close()

    assert suggested() == "part"
    put(store, "defend", of.defense_key, trained(1.0, 1))
    assert suggested() == "evaluate"
    assert said[-3:] == [f"[{n}/4] {each.label}: done by another run" for n, each in enumerate(plan.missing[:3], 1)]


def test_a_part_that_fails_is_the_error_of_its_defense_s_rows(store: LocalStore) -> None:
    of = ensemble()
    put(store, "attack", of.attack_key, trained(1.0, 1))
    queue = Queue(make_plan([of], store), 1)
    measured = queue.next()
    assert measured
    queue.ended(measured.stage.key)
    offer = queue.next()
    assert offer
    queue.ended(offer.stage.key, Failure("stage apart: the loss is nan", NON_FINITE))
    assert offer.stage.part == "model_0"
    rows = rows_of(store, of, errors=queue.errors)
    assert {(row["status"], row["error"], row["failure"]) for row in rows} == {
        ("failed", "stage apart: the loss is nan", NON_FINITE)
    }


def test_a_defense_of_which_two_parts_fail_has_failed_once(store: LocalStore) -> None:
    of = ensemble(3)
    queue = Queue(make_plan([of], store), 1)
    for error in (None, None, "first", None, "second"):  # the attack, its measurement and three parts
        assert not queue.over
        offer = queue.next()
        assert offer
        queue.ended(offer.stage.key, error)
    assert queue.over
    assert queue.finished == queue.total == 7
    assert queue.errors[of.defense_key] == "needs a stage that failed: first"
    assert len(queue.errors) == 4


def test_a_row_has_the_costs_of_the_parts_added(store: LocalStore) -> None:
    of = ensemble()
    finish(store, of, ASR)
    store.remove("defend", of.defense_key)
    parts = {"model_0": COSTS, "model_1": COSTS | {"device": "slide rule", "compute_type": "bf16", "tokens": 300}}
    parts["model_1"] |= {"code_version": "1.2.4"}
    put(store, "defend", of.defense_key, trained(58.4, 12_400) | {"compute_type": "fp32", "parts": parts})
    measure(store, of, ASR)
    row = rows_of(store, of)[0]
    assert (row["seconds"], row["tokens"], row["peak_memory_bytes"]) == (98.4, 13_400, 5 * 2**30)
    assert (row["defense_device"], row["defense_compute_type"]) == ("abacus + slide rule", "bf16+fp32")
    assert row["defense_code_version"] == "1.2.3 and 1.2.4", "results of two commits are not published"


def test_an_estimate_gives_the_parts_the_trainings_that_they_do() -> None:
    sft = cell(defense={"name": "sft", "training": {"max_steps": 1, "batch_size": 8}})
    step = pieces(stage(sft, "defend"), sft)[0].work
    work = {one.kind: pieces(one, one.cell)[0].work for one in stages_of(ensemble())}
    assert (work["part"], work["defend"]) == (2 * step, step), "each two steps, and one in the end"
    made = estimate(stages_of(ensemble(5)))
    assert made.seconds["part"] == pytest.approx(5 * 2 * made.seconds["defend"])


def test_a_part_that_was_never_timed_takes_as_long_as_defenses_do(store: LocalStore) -> None:
    of = ensemble()
    (part,), (rest,) = (pieces(one, of) for one in (parts_of(of)[0], stage(of, "defend")))
    defended = {"kind": "defend", "settings": of.settings(), "device": "abacus", "seconds": 7.0}
    assert Costs(samples_of([defended])).seconds(part, "tiny") == (14.0, "own timings of other methods on the model")
    timed = {"kind": "part", "part": "model_0", "settings": of.settings(), "device": "abacus", "seconds": 20.0}
    assert Costs(samples_of([defended, timed])).seconds(part, "tiny") == (
        20.0,
        "own timings of the method on the model",
    )
    assert Costs(samples_of([defended, timed])).seconds(rest, "tiny") == (7.0, "own timings of the method on the model")
    assert Costs([], paper=True).seconds(part, "tiny") == (pytest.approx(part.work * 0.0001232), PAPER)


def test_a_plan_says_how_much_disk_the_parts_take_meanwhile(store: LocalStore) -> None:
    line = disk.summary(make_plan([ensemble(3), ensemble(2)], store), store)
    assert line.startswith("Disk: 3 models take 739 kB")
    assert line.endswith("; the parts of a defense take up to 739 kB more until it is done")
    finish(store, ensemble(3), ASR, ASR)
    assert "parts" not in disk.summary(make_plan([ensemble(3)], store), store)


def test_a_store_lists_parts_and_keeps_those_that_a_grid_needs(store: LocalStore, grid_file: Any) -> None:
    of = ensemble()
    for part in (*parts_of(of), *parts_of(ensemble(3))):
        put_part(store, part)
    columns, _ = maintenance.listing(store)
    assert set(columns["what"]) == {"ensemble model_0", "ensemble model_1", "ensemble model_2"}
    path: Path = grid_file(defense={"name": "ensemble", "models": 2})
    found = maintenance.removable([path], [], store)
    assert set(found.artifacts) == {("part", part.key) for part in parts_of(ensemble(3))}
