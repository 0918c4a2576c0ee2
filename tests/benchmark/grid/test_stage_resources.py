"""Resources by kind of stage, by rule and by option: which place wins, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.grid.load import load_grid
from benchmark.grid.resources import Resources
from benchmark.grid.stage_resources import KINDS, StageResources, rules_of, workers_in_words
from benchmark.plan.plan import make_plan
from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.grid.test_load import GridFile, sentence, union
from tests.benchmark.grid.test_prompt_format import INST
from tests.benchmark.helpers import cell, stage
from tests.benchmark.plan.helpers import SETTINGS

SHARDS = {"workers": 2, "sharding": "tensor"}
RULE = {"where": {"model": "llama2-7b"}, "set": {"resources.attack.workers": 8}}


def of(kind: Any, **settings: Any) -> Stage:
    return Stage(kind, "key", SETTINGS | settings)


def workers(resources: StageResources, **settings: Any) -> dict[str, int]:
    return {kind: resources.of(of(kind, **settings)).workers for kind in KINDS}


def test_a_kind_has_its_own_and_a_part_those_of_its_defense() -> None:
    made = StageResources({"workers": 2, "attack": {"workers": 8}, "defend": {"workers": 4, "cpus": 3}})
    assert workers(made) == {"attack": 8, "part": 4, "defend": 4, "evaluate": 2}
    assert made.of(of("part")).cpus == 3
    assert made.default == Resources(workers=2)
    other = StageResources({"defend": {"workers": 4}, "part": {"workers": 1}, "timeout": 9.0})
    assert workers(other) == {"attack": 1, "part": 1, "defend": 4, "evaluate": 1}
    assert {other.of(of(kind)).timeout for kind in KINDS} == {9.0}


def test_trainings_and_evaluations_are_sharded_each_in_its_own_way() -> None:
    made = StageResources({"workers": 4, "min_workers": 2, "sharding": "zero3", "evaluate": {"sharding": "tensor"}})
    assert {kind: made.of(of(kind)).sharding for kind in KINDS} == {
        **dict.fromkeys(KINDS, "zero3"),
        "evaluate": "tensor",
    }
    assert made.of(of("attack")).least_workers == 2
    assert made.of(of("evaluate")).least_workers == 4, "fewer might not hold the model"
    assert StageResources({"offload": True, "sharding": "zero2", "evaluate": {"sharding": "none"}})


def test_rules_and_options_change_the_stages_that_match(grid_file: GridFile) -> None:
    loaded = load_grid(
        grid_file(
            resources={"attack": {"workers": 4}},
            sweep={"model": ["llama2-7b", "tiny"]},
            rules=[RULE, {"where": {"defense": "sft"}, "set": {"resources.workers": 2}}],
        )
    ).resources
    assert workers(loaded, model="llama2-7b") == {"attack": 8, "part": 1, "defend": 1, "evaluate": 1}
    sft = {"name": "sft"}
    assert workers(loaded, model="tiny", defense=sft) == {"attack": 4, "part": 2, "defend": 2, "evaluate": 2}
    again = load_grid(grid_file("again", rules=[RULE]), ["resources.attack.workers=3", "resources.workers=2"]).resources
    assert workers(again, model="llama2-7b") == {"attack": 3, "part": 2, "defend": 2, "evaluate": 2}


def test_a_later_rule_wins_over_an_earlier_one_and_scales_come_last(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales" / "large.yaml").write_text("rules: [{set: {resources.evaluate.workers: 5}}]")
    later = {"set": {"resources.attack.workers": 2}}
    loaded = load_grid(grid_file(rules=[RULE, later], scale="large")).resources
    assert workers(loaded, model="llama2-7b") == {"attack": 2, "part": 1, "defend": 1, "evaluate": 5}


def test_resources_of_stages_change_no_key(grid_file: GridFile, store: LocalStore) -> None:
    changed = grid_file("changed", resources={"attack": {"workers": 8}}, rules=[RULE])
    plans = [make_plan(load_grid(path).cells, store) for path in (grid_file("plain"), changed)]
    assert list(plans[0].stages) == list(plans[1].stages)
    assert plans[0].cells == plans[1].cells


def test_a_union_has_rules_of_its_own_about_resources(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first", rules=[{"set": {"resources.workers": 9}}])
    loaded = load_grid(union(tmp_path, include=["first"], rules=[RULE])).resources
    assert workers(loaded, model="llama2-7b")["attack"] == 8
    assert workers(loaded, model="tiny")["attack"] == 1, "the grids that it includes do not count"
    said = sentence(union(tmp_path, include=["first"], rules=[{"set": {"data.rows": 3}}]))
    assert "rule 1: a rule of a grid with 'include' sets resources only; set 'data.rows' in the included grids" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resources": {"atack": {"workers": 2}}}, "resources: unknown setting 'atack'; valid settings: "),
        ({"resources": {"atack": {}}}, "and for one kind of stages attack, part, defend, evaluate"),
        ({"resources": {"attack": {"worker": 2}}}, "resources.attack: unknown setting 'worker'; valid settings: "),
        ({"resources": {"attack": 2}}, "resources.attack: expected settings as 'key: value', got 2"),
        ({"resources": {"attack": {"workers": 0}}}, "resources.attack: 'workers' is 0, but"),
        (
            {"resources": {"min_workers": 9}},
            "resources.min_workers is 9, and the most workers that a stage has are 1; set it to at most 1, or raise "
            "resources.workers",
        ),
        (
            {"resources": {"workers": 2, "attack": {"min_workers": 9}}},
            "resources.attack.min_workers is 9, and the most workers that a stage has are 2; set it to at most 2",
        ),
        ({"resources": {"timeout": 1e300}}, "resources: 'timeout' is 1e+300, but input should be less than or equal"),
        ({"resources": [2]}, "resources: expected settings as 'key: value', got [2]"),
        ({"resources": {"defend": {"offload": True}}}, "resources.defend.offload is true without a sharding; set"),
        (
            {"resources": {"sharding": "tensor"}},
            "resources.sharding: 'tensor' is for evaluations; set it to one of none, zero2, zero3, or "
            "resources.evaluate.sharding",
        ),
        ({"resources": {"attack": {"sharding": "tensor"}}}, "resources.attack.sharding: 'tensor' is for evaluations; "),
        (
            {"resources": {"evaluate": {"workers": 2, "sharding": "zero3"}}},
            "resources.evaluate.sharding: 'zero3' is for trainings; set it to one of none, tensor",
        ),
        (
            {"rules": [{"set": {"resources.defend.sharding": "tensor"}}]},
            "rule 1, set: resources.defend.sharding: 'tensor' is for evaluations; ",
        ),
        (
            {"resources": {"evaluate": {"sharding": "tensor"}}},
            "resources.evaluate.sharding is tensor, and one worker has no shards; set resources.evaluate.workers to 2",
        ),
        (
            {"resources": {"engine": "vllm", "evaluate": SHARDS}},
            "resources.evaluate.sharding is tensor, which vLLM does not take; remove it, or resources.evaluate.engine",
        ),
        (
            {"resources": {"gpus": 0.5, "evaluate": SHARDS}},
            "and two workers cannot share a GPU for it; set resources.evaluate.gpus to 1, or remove it",
        ),
        (
            {"resources": {"evaluate": SHARDS}, "metrics": ["asr", "asr_int4"]},
            "resources.evaluate.sharding is tensor, and metric asr_int4 trains or rounds a copy of the whole model; "
            "remove the metric, or set resources.evaluate.sharding to none",
        ),
        (
            {"resources": {"evaluate": SHARDS}, "metrics": ["asr", "durability"]},
            "and metric asr_after_finetuning trains or ",
        ),
        ({"rules": [{"set": {"resources.worker": 2}}]}, "rule 1, set: resources: unknown setting 'worker'"),
        ({"rules": [{"set": {"resources.attack.worker": 2}}]}, "rule 1, set: resources.attack: unknown setting"),
        ({"rules": [{"set": {"resources.gpus": -1}}]}, "rule 1, set: resources: 'gpus' is -1, but"),
        ({"rules": [{"set": {"resources.part.workers.n": 1}}]}, "rule 1, set: resources.part: 'workers' is {'n': 1}"),
        ({"rules": [{"set": {"resources": {"workers": 1}}}]}, "rule 1, set: 'resources' needs the path of one setting"),
        ({"rules": [{"default": {"resources.cpus": 1}}]}, "use 'resources.cpus' under 'set' of a rule"),
        ({"rules": [{"where": {"resources.cpus": 1}, "set": {"seed": 1}}]}, "under 'set' of a rule"),
        (
            {"rules": [{"where": {"defense": "sft"}, "set": {"resources.attack.workers": 2}}]},
            "rule 1: cells that differ in 'defense' share one attack stage, so it cannot choose resources.attack; "
            "remove it from 'where', or set the resources of another kind",
        ),
        (
            {"rules": [{"where": {"asr_floor": 90}, "set": {"resources.workers": 2}}]},
            "rule 1: cells that differ in 'asr_floor' share one evaluate stage",
        ),
        (
            {"model": "tiny", "rules": [{"where": {"model": "tiny"}, "set": {"resources.defend.offload": True}}]},
            "resources.defend.offload is true without a sharding",
        ),
    ],
)
def test_a_mistake_is_one_sentence(grid_file: GridFile, values: dict[str, Any], said: str) -> None:
    text = sentence(grid_file(**values))
    assert said in text
    assert "\n" not in text


def test_fewest_workers_may_be_more_than_some_stages_have(grid_file: GridFile) -> None:
    values = {"workers": 8, "min_workers": 4, "evaluate": {"workers": 1}}
    loaded = load_grid(grid_file(resources=values), overrides=["resources.attack.workers=2"]).resources
    assert workers(loaded) == {"attack": 2, "part": 8, "defend": 8, "evaluate": 1}


def test_what_a_cell_is_in_the_end_chooses_the_resources(grid_file: GridFile) -> None:
    rules = [{"where": {"data.rows": 16}, "set": {"data.rows": 32}}, {"where": {"data.rows": 32}, "set": {}}]
    rules[1]["set"] = {"resources.attack.workers": 2}
    loaded = load_grid(grid_file(data={"name": "builtin-short", "rows": 16}, rules=rules))
    assert loaded.resources.of(stage(loaded.cells[0], "attack")).workers == 2
    assert loaded.resources.of(stage(cell(), "attack")).workers == 1


def test_a_rule_finds_a_template_by_its_file(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "inst.txt").write_text(INST)
    rules = [{"where": {"prompt_format": "inst.txt"}, "set": {"resources.attack.workers": 2}}]
    loaded = load_grid(grid_file(prompt_format="inst.txt", rules=rules))
    assert loaded.resources.of(stage(loaded.cells[0], "attack")).workers == 2
    assert loaded.resources.of(stage(cell(), "attack")).workers == 1


def test_the_workers_of_stages_are_named_where_they_are_several() -> None:
    stages = [of("attack", model="m"), of("attack", model="n"), of("evaluate", model="m")]
    assert workers_in_words(stages, Resources()) == []
    assert workers_in_words(stages, Resources(workers=2)) == ["Workers of a stage: attack 2, evaluate 2"]
    made = StageResources({"attack": {"workers": 4}}, rules_of({"rules": [RULE | {"where": {"model": "n"}}]}))
    assert workers_in_words(stages, made) == ["Workers of a stage: attack m 4, attack n 8, evaluate 1"]


def test_all_stages_are_alike_without_sections() -> None:
    with pytest.raises(UserError, match="resources: unknown setting 'x'"):
        StageResources({"x": 1})
    assert {StageResources({}).of(of(kind)) for kind in KINDS} == {Resources()}
