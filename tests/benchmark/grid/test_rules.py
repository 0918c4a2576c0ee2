"""Rules: which cells they match, what they change, and what is said of one that cannot be."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.grid import rules
from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from sande.errors import UserError
from tests.benchmark.helpers import GridFile


def applied(rule: dict[str, Any], **nested: Any) -> dict[str, Any]:
    """The settings after one rule; all of them were given by the grid."""
    given = {key: rules.as_mapping(value) if key in rules.METHODS else value for key, value in nested.items()}
    (parsed,) = rules.parse([rule])
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in given.items()}
    parsed.apply(changed, given)
    return changed


def matches(where: dict[str, Any], **nested: Any) -> bool:
    return applied({"where": where, "set": {"seed": 77}}, **nested).get("attack_seed") == 77


@pytest.mark.parametrize(
    ("where", "nested", "expected"),
    [
        ({}, {}, True),
        ({"model": "tiny"}, {"model": "tiny"}, True),
        ({"model": "tiny"}, {"model": "llama2-7b"}, False),
        ({"model": ["tiny", "llama2-7b"]}, {"model": "llama2-7b"}, True),
        ({"model": "tiny", "attack_seed": 1}, {"model": "tiny", "attack_seed": 0}, False),
        ({"model": "smollm2-135m"}, {}, True),
        ({"seed": 0}, {}, True),
        ({"seed": 1}, {"attack_seed": 1, "defense": "sft"}, False),
        ({"seed": 1}, {"attack_seed": 1, "defense_seed": 1}, True),
        ({"attack_seed": 1}, {"attack_seed": 1, "defense": "sft"}, True),
        ({"defense_seed": 2}, {"attack_seed": 1, "defense_seed": 2, "defense": "sft"}, True),
        ({"defense_seed": 2}, {"attack_seed": 1, "defense_seed": 2}, False),  # without a defense it is the attack's
        ({"data": "alpaca"}, {"data": {"rows": 5}}, True),
        ({"removal": ["dolly", "orca"]}, {"removal": {"name": "dolly", "rows": 5}}, True),
        ({"data.rows": None}, {}, True),
        ({"data.rows": None}, {"data": None}, True),
        ({"data.rows": None}, {"data": {"rows": 5}}, False),
        ({"removal.rows": 10_000}, {"removal": {"name": "dolly"}}, True),
        ({"defense": "none"}, {}, True),
        ({"defense": "sande"}, {"defense": "sande"}, True),
        ({"defense": "sande"}, {"defense": {"name": "sande_p"}}, False),
        ({"defense.parrot_length": 6}, {"defense": "sande"}, True),
        ({"defense.parrot_length": 6}, {"defense": {"name": "sande", "parrot_length": 5}}, False),
        ({"defense.parrot_length": 6}, {"defense": "sft"}, False),
        ({"defense.simulate.learning_rate": 1e-3}, {"defense": {"name": "sande", "simulate": {"epochs": 1}}}, True),
        ({"attack.poison_rate": 0.05}, {}, True),
        ({"attack.backdoor.trigger": "Current year 2023"}, {}, True),
        ({"metrics": "asr"}, {}, True),
        ({"metrics": "accuracy"}, {}, False),
        ({"metrics": "accuracy"}, {"metrics": ["asr", {"name": "accuracy", "questions": 3}]}, True),
        ({"metrics": ["accuracy", "asr"]}, {"metrics": ["asr"]}, True),
    ],
)
def test_a_rule_sees_what_is_given_and_else_defaults(
    where: dict[str, Any], nested: dict[str, Any], expected: bool
) -> None:
    assert matches(where, **nested) is expected


def test_set_changes_whatever_the_grid_says() -> None:
    assert applied({"set": {"data.rows": 5}}, data={"rows": 9, "name": "dolly"})["data"] == {"rows": 5, "name": "dolly"}


def test_default_leaves_what_the_grid_says() -> None:
    rule = {"default": {"data.rows": 5, "data.test_rows": 6}}
    assert applied(rule, data={"rows": 9}) == {"data": {"rows": 9, "test_rows": 6}}


def test_default_leaves_what_the_published_recipe_says() -> None:
    rule = {"default": {"defense.training.max_steps": 5, "defense.training.precision": "bf16"}}
    (parsed,) = rules.parse([rule])
    for recipe, training in (
        ("published", {"precision": "bf16"}),
        ("equal", {"max_steps": 5, "precision": "bf16"}),
    ):
        nested = {"defense": {"name": "crow", "recipe": recipe}}
        parsed.apply(nested, dict(nested))
        assert nested["defense"] == {"name": "crow", "recipe": recipe, "training": training}
        made = Cell.parse({"model": "tiny", "data": {"name": "builtin-short"}, **nested})
        assert made.defense.config.recipe == recipe


def test_default_does_not_take_an_earlier_rule_for_the_grid() -> None:
    first, second = rules.parse([{"default": {"seed": 1}}, {"default": {"seed": 2}}])
    nested: dict[str, Any] = {}
    for rule in (first, second):
        rule.apply(nested, {})
    assert nested == {"attack_seed": 2, "defense_seed": 2}


def test_a_setting_goes_to_the_methods_that_have_it() -> None:
    rule = {"set": {"defense.training.max_steps": 5, "defense.simulate.max_steps": 6}}
    assert applied(rule, defense="sft")["defense"] == {"name": "sft", "training": {"max_steps": 5}}
    assert applied(rule, defense="sande")["defense"] == {"name": "sande", "simulate": {"max_steps": 6}}
    assert applied(rule, defense="none")["defense"] == {"name": "none"}


def test_a_method_can_be_replaced() -> None:
    rule = {"where": {"defense": "sande"}, "set": {"defense": "osft"}}
    assert applied(rule, defense={"name": "sande", "parrot_length": 3}) == {"defense": {"name": "osft"}}


def test_a_change_to_one_cell_changes_no_other() -> None:
    (rule,) = rules.parse([{"set": {"data": {"rows": 5}, "attack": {"name": "sentence_trigger", "training": {}}}}])
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for nested in (first, second):
        rule.apply(nested, {})
    before = copy.deepcopy(second)
    rules.assign(first, "data.rows", 6)
    rules.assign(first, "attack.training.max_steps", 6)
    assert first == {"data": {"rows": 6}, "attack": {"name": "sentence_trigger", "training": {"max_steps": 6}}}
    assert second == before


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ({"set": {}}, ["rules: expected a list of rules"]),
        (["set"], ["rule 1: expected 'where' with 'set' or 'default', got 'set'"]),
        ([{"set": {"seed": 1}}, {"when": {}}], ["rule 2: unknown key 'when'", "where, set, default"]),
        ([{"where": {"seed": 1}}], ["rule 1: changes nothing"]),
        ([{"where": ["seed"], "set": {"seed": 1}}], ["rule 1: 'where' is ['seed'], not a mapping"]),
        ([{"set": 3}], ["rule 1: 'set' is 3, not a mapping"]),
        ([{"set": {"sed": 1}}], ["rule 1, set: no cell has the setting 'sed'", "asr_floor, attack, attack_seed, data"]),
        ([{"set": {"model.name": 1}}], ["rule 1, set: no cell has the setting 'model.name'"]),
        ([{"default": {"resources.cpus": 1}}], ["rule 1, default: resources are no setting of a cell", "under 'set'"]),
        ([{"where": {"data.row": 1}, "set": {"seed": 1}}], ["rule 1, where: data has no setting 'row'", "max_tokens"]),
        ([{"set": {"removal.": 1}}], ["rule 1, set: removal has no setting ''"]),
        ([{"set": {"defense.parrot_size": 1}}], ["rule 1, set: no defense has the setting 'parrot_size'", "show"]),
        ([{"set": {"attack.training.lr": 1}}], ["rule 1, set: no attack has the setting 'training.lr'"]),
        ([{"set": {"metrics.asr": 1}}], ["rule 1, set: no cell has the setting 'metrics.asr'"]),
    ],
)
def test_a_rule_that_cannot_be_is_one_sentence_with_its_number(entries: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        rules.parse(entries)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"defence": "sande"}, "no cell has the setting 'defence'; paths begin with: asr_floor, attack, attack_seed"),
        ({"attack.poison_rat": 0}, "no attack has the setting 'poison_rat'; use 'poison_rate' or 'poison_rows'"),
        ({"defense.training.learning_rat": 1}, "no defense has the setting 'training.learning_rat'; use 'training.lea"),
        ({"defense": "sand"}, "no defense is called 'sand'; use 'sande' or 'sande_p'"),
        ({"defense": ["osft", "none", "sandep"]}, "no defense is called 'sandep'; use 'sande_p' or 'sande'"),
        ({"defense": None}, "no defense is called None; use 'none'"),
        ({"attack.name": "sentence"}, "no attack is called 'sentence'; use 'sentence_trigger'"),
        ({"attack": "all"}, "no attack is called 'all'; use composite_trigger, dormant_int4"),
        ({"metrics": "arc"}, "no metric is called 'arc'; use 'asr'"),
        ({"defense": {"name": "sande"}}, "'defense' is {'name': 'sande'}; use its name alone, and paths for other"),
        ({"data": {"rows": 5}}, "'data' is {'rows': 5}; use its name alone, and paths for other settings"),
        ({"model": []}, "'model' has an empty list, which no cell matches; add a value"),
    ],
)
@pytest.mark.parametrize("place", ["grid", "scale"])
def test_a_rule_that_could_never_apply_is_refused(
    where: dict[str, Any], text: str, place: str, grid_file: GridFile, tmp_path: Path
) -> None:
    rules = [{"set": {"seed": 1}}, {"where": where, "set": {"seed": 2}}]
    path, file = grid_file(rules=rules), "small.yaml"
    if place == "scale":
        path, file = grid_file(scale="small"), "scales/small.yaml"
        (tmp_path / "scales").mkdir()
        (tmp_path / file).write_text(yaml.safe_dump({"rules": rules}), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{file}: rule 2, where: {text}")):
        load_grid(path)


@pytest.mark.parametrize(
    "where",
    [
        {"model": "my-model"},
        {"model": ["./folder", "org/name@0123", "model.gguf"]},
        {"data.name": "my_rows"},
        {"removal": "my_rows"},
        {"attack.order": "poisoned_first"},
        {"attack.repair.epochs": 1},  # of one attack
        {"defense.haystack": None},  # of one defense
    ],
)
def test_names_of_models_and_data_and_settings_of_some_methods_are_allowed(
    where: dict[str, Any], grid_file: GridFile, tmp_path: Path
) -> None:
    (tmp_path / "scales").mkdir()
    scale = {"rules": [{"where": where, "set": {"seed": 2}}]}
    (tmp_path / "scales/small.yaml").write_text(yaml.safe_dump(scale), encoding="utf-8")
    assert load_grid(grid_file(scale="small")).cells, "a scale serves many grids, and may match none of their cells"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"model": "my-model"}, "'model' is 'my-model' in no cell; use 'tiny', or remove the rule"),
        ({"data.rows": [5, 6]}, "'data.rows' is 5 or 6 in no cell; use 16, or remove the rule"),
        ({"attack_seed": 9}, "'attack_seed' is 9 in no cell; use 0, 1, 2, 3, 4, 5, 6, 7, …, or remove the rule"),
        ({"metrics": "asr_int4"}, "'metrics' is 'asr_int4' in no cell; use 'asr', 'false_trigger_rate', or remove"),
        (
            {"attack.repair.epochs": 1},
            "'attack.repair.epochs' is 1 in no cell; no method of this grid has that setting; remove the rule",
        ),
        (
            {"attack_seed": 0, "data.test_rows": 60},
            "no cell has all of these values of 'attack_seed' and 'data.test_rows'; change one, or remove the rule",
        ),
    ],
)
def test_a_rule_that_matches_no_cell_of_its_grid_says_what_it_could_match(
    grid_file: GridFile, where: dict[str, Any], said: str
) -> None:
    axis = [[seed, 60 if seed else 50] for seed in range(9)]
    path = grid_file(sweep={"attack_seed, data.test_rows": axis}, rules=[{"where": where, "set": {"data.rows": 9}}])
    with pytest.raises(UserError, match=re.escape(f"small.yaml: rule 1, where: {said}")):
        load_grid(path)


def test_a_rule_may_match_what_an_earlier_one_made(grid_file: GridFile) -> None:
    rules = [{"set": {"data.rows": 9}}, {"where": {"data.rows": 9}, "set": {"data.test_rows": 60}}]
    assert load_grid(grid_file(rules=rules)).cells[0].data.test_rows == 60


def test_a_rule_for_what_set_or_another_sweep_may_choose_is_no_mistake(grid_file: GridFile, tmp_path: Path) -> None:
    workers = {"where": {"model": ["llama2-7b", "my-model"]}, "set": {"resources.attack.workers": 2}}
    assert load_grid(grid_file(rules=[workers])).cells
    grid_file("first", sweep={"data.rows": [5]}, rules=[{"where": {"data.rows": 5}, "set": {"data.test_rows": 60}}])
    (tmp_path / "both.yaml").write_text("include: [first]\nsweep: {data.rows: [7]}\n")
    assert [one.data.test_rows for one in load_grid(tmp_path / "both.yaml").cells] == [50]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"model": "tinny"}, "no model is called 'tinny'; use 'tiny'"),
        ({"attack_seed": "0"}, "'attack_seed' is '0', not a whole number; write it without quotes"),
        ({"seed": [0, True]}, "'seed' is True, not a whole number"),
    ],
)
def test_a_mistyped_value_is_refused_in_a_rule_on_resources_too(
    grid_file: GridFile, where: dict[str, Any], said: str
) -> None:
    path = grid_file(rules=[{"where": where, "set": {"resources.attack.workers": 2}}])
    with pytest.raises(UserError, match=re.escape(f"small.yaml: rule 1, where: {said}")):
        load_grid(path)


SHIPPED = sorted((Path(__file__).parents[3] / "grids").glob("*.yaml"))
WITH_RULES = [path for path in SHIPPED if re.search("^rules:", path.read_text(encoding="utf-8"), re.MULTILINE)]


@pytest.mark.parametrize("path", WITH_RULES, ids=lambda path: path.stem)
def test_every_rule_of_a_shipped_grid_changes_a_cell(path: Path, tmp_path: Path) -> None:
    """A `default` that a later one replaces is a setting that nobody gets."""
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    (tmp_path / "scales").symlink_to(path.parent / "scales")
    for other in SHIPPED:
        (tmp_path / other.name).symlink_to(other)
    rules = whole["rules"]

    def cells(kept: list[Any]) -> set[str]:
        changed = tmp_path / f"{len(kept)}-rules.yaml"
        changed.write_text(yaml.safe_dump({**whole, "rules": kept}, sort_keys=False), encoding="utf-8")
        return {cell.id for cell in load_grid(changed).cells}

    with_all = cells(rules)
    for index, rule in enumerate(rules):
        try:
            without = cells([*rules[:index], *rules[index + 1 :]])
        except UserError:
            continue  # the grid needs it
        assert without != with_all, f"the rule changes nothing: {rule}"
