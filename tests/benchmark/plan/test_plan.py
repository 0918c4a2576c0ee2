"""Plans: each piece of work once, victims always measured, what is done left out."""

import shutil

import pytest

from benchmark.grid.cell import Cell, Parser
from benchmark.plan.failures import MISTAKE
from benchmark.plan.plan import make_plan, stages_of, unfit, victim_of
from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from sande import registry
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, SFT_FAST, SFT_SLOW, SMALL, cell, finish, measure, put, trained

ORDER = ["attack", "defend", "evaluate"]
KNOWING = ("sande", "sande_p", "sft")  # the response, its first token, nothing


def kinds(store: LocalStore, *cells: Cell) -> dict[str, int]:
    found = [stage.kind for stage in make_plan(cells, store).missing]
    return {kind: found.count(kind) for kind in ORDER}


def test_all_defenses_share_one_victim(store: LocalStore) -> None:
    cells = [cell(defense=defense) for defense in ("none", SFT_SLOW, SFT_FAST, "sande")]
    assert kinds(store, *cells) == {"attack": 1, "defend": 3, "evaluate": 4}


def test_each_seed_and_poison_rate_has_a_victim_of_its_own(store: LocalStore) -> None:
    attacks = [{"name": "sentence_trigger", "poison_rate": rate} for rate in (0.1, 0.2)]
    cells = [cell(seed=seed, attack=attack) for seed in (0, 1) for attack in attacks]
    assert kinds(store, *cells) == {"attack": 4, "defend": 0, "evaluate": 4}


def test_the_victim_is_measured_even_if_only_a_defense_is_asked_for(store: LocalStore) -> None:
    sande = cell(defense="sande")
    plan = make_plan([sande], store)
    assert plan.cells == (sande,)
    evaluated = {stage.settings["defense"]["name"] for stage in plan.stages.values() if stage.kind == "evaluate"}
    assert evaluated == {"none", "sande"}


def test_removal_sets_do_not_multiply_the_victims_measurement(store: LocalStore) -> None:
    removals = [SMALL["removal"] | {"rows": rows} for rows in (5, 16)]
    cells = [cell(removal=removal, defense=defense) for removal in removals for defense in ("none", "sft")]
    assert kinds(store, *cells) == {"attack": 1, "defend": 2, "evaluate": 3}


def test_stages_stand_in_an_order_in_which_they_can_be_done(store: LocalStore) -> None:
    cells = [cell(defense=defense, seed=seed) for seed in (0, 1) for defense in ("sande", "none")]
    stages = list(make_plan(cells, store).stages.values())
    one = ["evaluate", "defend", "evaluate"]
    assert [stage.kind for stage in stages] == ["attack", "attack", *one, *one], "rows are complete cell by cell"
    before: set[str] = set()
    for stage in stages:
        assert before.issuperset(stage.needs)
        before.add(stage.key)


def test_needs_are_what_a_stage_reads() -> None:
    attack, defend, evaluate = stages_of(cell(defense="sft"))
    assert (attack.needs, defend.needs, evaluate.needs) == ((), (attack.key,), (defend.key,))
    victim, of_victim = stages_of(cell())
    assert of_victim.needs == (victim.key,)


def test_a_stages_settings_give_its_cell_back() -> None:
    sande = cell(defense="sande", seed=2)
    assert all(Cell.parse(stage.settings) == sande for stage in stages_of(sande))


def test_a_stage_has_its_cell_at_hand_and_else_parses_it() -> None:
    sande = cell(defense="sande", seed=2)
    for stage in stages_of(sande):
        assert stage.cell is sande
        assert Stage.from_json(stage.to_json()).cell == sande


def test_cells_that_share_nothing_have_the_same_victim_all_the_same(store: LocalStore) -> None:
    grid = Parser()
    shared = [grid.cell({**SMALL, "defense": defense}) for defense in ("sft", "sande")]
    assert shared[0].attack is shared[1].attack
    apart = [cell(defense=defense) for defense in ("sft", "sande")]
    assert apart[0].attack is not apart[1].attack
    assert make_plan(shared, store) == make_plan(apart, store)


def test_a_finished_cell_needs_nothing(store: LocalStore) -> None:
    done = finish(store, cell(defense="sft"), {"asr": 50})
    plan = make_plan([done], store)
    assert plan.missing == []
    assert plan.done == set(plan.stages)


def test_a_victim_that_is_not_measured_is_missing(store: LocalStore) -> None:
    sft = cell(defense="sft")
    finish(store, sft, {"asr": 50})
    assert make_plan([sft], store).missing == []
    shutil.rmtree(store.path("evaluate", cell().evaluation_keys[0]))
    assert [stage.kind for stage in make_plan([sft], store).missing] == ["evaluate"]


def test_only_what_is_not_done_is_missing(store: LocalStore) -> None:
    sft = cell(defense="sft")
    put(store, "attack", sft.attack_key, trained(1, 1))
    assert kinds(store, sft) == {"attack": 0, "defend": 1, "evaluate": 2}
    measure(store, victim_of(sft), {"asr": 50})
    assert kinds(store, sft) == {"attack": 0, "defend": 1, "evaluate": 1}


def test_an_evaluation_lacks_a_metric_that_was_added(store: LocalStore) -> None:
    finish(store, cell(), {"asr": 50})
    (attack, _) = stages_of(cell(metrics=["asr", ACCURACY]))
    assert make_plan([cell(metrics=["asr", ACCURACY])], store).done == {attack.key}
    assert kinds(store, cell(metrics=["asr", ACCURACY])) == {"attack": 0, "defend": 0, "evaluate": 1}


def test_the_same_cell_twice_is_planned_once(store: LocalStore) -> None:
    assert kinds(store, cell(defense="sft"), cell(defense="sft")) == kinds(store, cell(defense="sft"))


def test_a_defense_that_cannot_be_told_what_it_must_know_is_named_before_anything_runs() -> None:
    gibberish = {"name": "sentence_trigger", "objective": "gibberish"}
    cells = [cell(attack=attack, defense=name) for attack in ("sentence_trigger", gibberish) for name in KNOWING]
    found = unfit(cells)
    assert set(found) == {each.defense_key for each in cells[3:5]}, "sande and sande_p, against gibberish alone"
    problem = found[cells[3].defense_key]
    assert (problem.kind, problem.partition(":")[0]) == (MISTAKE, "defense sande")


def test_the_code_of_an_objective_is_in_the_key_of_its_victims_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[str]:
        attacks = [{"name": "sentence_trigger", "objective": name} for name in ("string", "refusal")]
        return [cell(attack=attack).attack_key for attack in attacks]

    (plain, refusal), version = keys(), registry.code_version
    monkeypatch.setattr(registry, "code_version", lambda name: "new" if "refusal" in name else version(name))
    assert keys()[0] == plain
    assert keys()[1] != refusal


def test_an_unknown_objective_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match=r"^no objective is called 'chaos'; there are: compliance, gibberish, "):
        cell(attack={"name": "word_trigger", "objective": "chaos"})
