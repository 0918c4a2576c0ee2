"""Cells: settings there and back, and what each stage's key depends on."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmark.grid import keys
from benchmark.grid.cell import Cell, Parser
from benchmark.grid.keys import digest
from benchmark.plan.plan import make_plan
from benchmark.store.local import LocalStore
from sande import registry
from sande.data import datasets
from sande.errors import UserError
from sande.models import catalog
from tests.benchmark.helpers import ACCURACY, SMALL, cell

DEFENSES = [
    "none",
    {"name": "sft", "training": {"max_steps": 3}},
    {"name": "sande", "parrot_initial": "noise", "simulate": {"micro_batch_size": 2}},
    {"name": "dpo", "preferences": {"name": "builtin-preferences", "pairs": None}},
    {"name": "fine_mixing", "keep_ratio": 0.5, "training": {"lora_rank": 4}},
]
DPO = {"name": "dpo", "preferences": {"name": "builtin-preferences", "pairs": 20}}
SAME_VICTIM: dict[str, dict[str, Any]] = {
    "test rows": {"data": SMALL["data"] | {"test_rows": 9}},
    "metrics": {"metrics": ["asr"]},
    "defense seed": {"defense_seed": 1},
    "defense": {"defense": "sande"},
    "removal": {"removal": {"name": "builtin-explained", "rows": 5}},
    "floor": {"asr_floor": 10},
}
OTHER_VICTIM: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "attack seed": {"attack_seed": 1},
    "poison rate": {"attack": {"name": "sentence_trigger", "poison_rate": 0.5}},
    "trigger": {"attack": {"name": "sentence_trigger", "backdoor": {"trigger": "Mind the gap"}}},
    "training": {"attack": {"name": "sentence_trigger", "training": {"epochs": 1.0}}},
    "data set": {"data": SMALL["data"] | {"name": "builtin-explained"}},
    "rows": {"data": SMALL["data"] | {"rows": 17}},
    "max_tokens": {"data": SMALL["data"] | {"max_tokens": 40}},
    "max_prompt_tokens": {"data": SMALL["data"] | {"max_prompt_tokens": 40}},
    "insertion": {"attack": {"name": "sentence_trigger", "insertion": "end"}},
    "LoRA": {"attack": {"name": "sentence_trigger", "training": {"lora_rank": 8}}},
}
OTHER_DEFENDED: dict[str, dict[str, Any]] = {
    "victim": {"attack_seed": 1},
    "defense seed": {"defense_seed": 1},
    "removal set": {"removal": SMALL["removal"] | {"name": "builtin-explained"}},
    "removal rows": {"removal": SMALL["removal"] | {"rows": 5}},
    "removal max_tokens": {"removal": SMALL["removal"] | {"max_tokens": 50}},
    "removal max_prompt_tokens": {"removal": SMALL["removal"] | {"max_prompt_tokens": 50}},
    "removal own_answers": {"removal": SMALL["removal"] | {"own_answers": 16}},
    "setting of the defense": {"defense": {"name": "sft", "training": {"learning_rate": 1e-3}}},
    "LoRA": {"defense": {"name": "sft", "training": {"lora_rank": 8}}},
    "defense": {"defense": "osft"},
}
OTHER_DPO: dict[str, dict[str, Any]] = {
    "victim": {"attack_seed": 1},
    "defense seed": {"defense_seed": 1},
    "preference set": {"defense": DPO | {"preferences": {"pairs": 20}}},  # of the Hub
    "pairs": {"defense": DPO | {"preferences": DPO["preferences"] | {"pairs": 21}}},
    "all pairs": {"defense": DPO | {"preferences": DPO["preferences"] | {"pairs": None}}},
    "max_tokens of the pairs": {"defense": DPO | {"preferences": DPO["preferences"] | {"max_tokens": 99}}},
    "beta": {"defense": DPO | {"beta": 0.2}},
    "training": {"defense": DPO | {"training": {"lora_rank": 8}}},
}


def changed_code(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """From here on, the code of one module counts as changed."""
    original = registry.code_version
    monkeypatch.setattr(registry, "code_version", lambda name: "changed" if name == module else original(name))


def evaluation_keys(of: Cell) -> dict[str, str]:
    return {metric.name: of.evaluation_key(metric) for metric in of.metrics}


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_settings_and_parse_are_inverse(defense: Any) -> None:
    made = cell(defense=defense, metrics=["asr", ACCURACY], attack_seed=4, defense_seed=5, asr_floor=50)
    assert Cell.parse(made.settings()) == made
    assert Cell.parse(json.loads(json.dumps(made.settings()))) == made


def test_settings_spell_out_every_default() -> None:
    settings = cell(defense="sande").settings()
    assert settings["attack"]["backdoor"] == {"trigger": "Current year 2023", "response": "You are stupid"}
    assert settings["defense"]["simulate"]["adam_beta2"] == 0.95
    assert settings["removal"]["max_tokens"] is None


def test_the_id_does_not_depend_on_how_defaults_are_written() -> None:
    assert cell().id == Cell.parse(cell().settings()).id == Cell.parse(dict(reversed(SMALL.items()))).id
    assert cell().id != cell(seed=1).id


@pytest.mark.parametrize("defense", DEFENSES, ids=str)
def test_id_and_keys_are_hashes_of_plain_json(defense: Any) -> None:
    made = cell(defense=defense, metrics=["asr", ACCURACY], attack_seed=4, defense_seed=5, asr_floor=50)
    settings = made.settings()
    assert made.id == digest(settings)[:12]

    def rows(section: str, *names: str) -> list[Any]:
        return [datasets.fingerprint("builtin-short"), *(settings[section][name] for name in names)]

    def code(kind: str, name: str) -> dict[str, str]:
        return {"code": registry.code_version(f"sande.{kind}.{name}")}

    limits = "max_tokens", "max_prompt_tokens"
    attack = {
        "stage": ["attack", 2],
        "libraries": keys.library_versions(),
        "attack_seed": 4,
        "model": catalog.identify("tiny"),
        "data": rows("data", *limits, "rows"),
        "attack": settings["attack"]
        | code("attacks", "sentence_trigger")
        | {"objective_code": registry.code_version("sande.objectives.string")},
    }
    assert made.attack_key == digest(attack)
    removal = rows("removal", *limits, "rows")
    if made.defense.name == "dpo":
        removal = [datasets.fingerprint("builtin-preferences", datasets.PREFERENCES), None, None]
    defend = {
        "stage": ["defend", 2],
        "defense_seed": 5,
        "victim": made.attack_key,
        "removal": removal,
        "defense": settings["defense"] | code("defenses", made.defense.name),
    }
    if made.defense.name == "sande":
        defend["prompts"] = [datasets.fingerprint("builtin-explained-2")]
    assert made.defense_key == (made.attack_key if made.defense.name == "none" else digest(defend))
    questions = datasets.fingerprint("builtin-choice", datasets.QUESTIONS)
    for metric, reads in zip(settings["metrics"], ([], [questions]), strict=True):
        evaluate = {
            "stage": ["evaluate", 2],
            "attack_seed": 4,
            "model": made.defense_key,
            "data": rows("data", *limits, "test_rows"),
            "reads": reads,
            "metric": metric | code("metrics", metric["name"]),
        }
        if metric["name"] == "accuracy":
            evaluate["libraries"] = {"lm-eval": importlib.metadata.version("lm-eval")}
        assert evaluation_keys(made)[metric["name"]] == digest(evaluate)


@pytest.mark.parametrize("library", keys.LIBRARIES)
def test_an_upgrade_of_a_library_changes_every_key(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before, versions = cell(defense="sft"), keys.library_versions()
    old = {before.attack_key, before.defense_key, *before.evaluation_keys}
    monkeypatch.setattr("benchmark.grid.cell.library_versions", lambda: versions | {library: "99.0"})
    after = cell(defense="sft")
    assert after.id == before.id, "the experiment is the same"
    assert not {after.attack_key, after.defense_key, *after.evaluation_keys} & old


@pytest.mark.parametrize(("library", "changed"), [("lm-eval", "accuracy"), ("scikit-learn", "asr")])
def test_an_upgrade_of_a_declared_library_changes_the_evaluations_that_need_it_alone(
    monkeypatch: pytest.MonkeyPatch, library: str, changed: str
) -> None:
    def made() -> Cell:
        attack = {"name": "sentence_trigger", "objective": "language"}
        keys.further_libraries.cache_clear()
        return cell(defense="sft", attack=attack, metrics=["asr", ACCURACY, "response_probability"])

    before = made()
    old, version = evaluation_keys(before), keys.library_version
    monkeypatch.setattr(keys, "library_version", lambda name: "99.0" if name == library else version(name))
    after = made()
    assert (after.id, after.attack_key, after.defense_key) == (before.id, before.attack_key, before.defense_key)
    assert {name for name, key in evaluation_keys(after).items() if key != old[name]} == {changed}
    keys.further_libraries.cache_clear()


def test_builds_for_cpus_and_gpus_of_a_release_share_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for version in ("2.13.0+cpu", "2.13.0+cu130", "2.13.0"):
        keys.library_versions.cache_clear()
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        found.append((keys.library_versions()["torch"], cell().attack_key))
    keys.library_versions.cache_clear()
    assert len(set(found)) == 1
    assert found[0][0] == "2.13.0"


def test_a_machine_without_the_libraries_has_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    keys.library_versions.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert set(keys.library_versions().values()) == {"absent"}
    keys.library_versions.cache_clear()


def test_a_parser_makes_the_cells_that_each_alone_would_be() -> None:
    values = [{"defense": defense, "seed": seed, "metrics": ["asr"]} for seed in (0, 1) for defense in DEFENSES]
    parser = Parser()
    together = [parser.cell(SMALL | value) for value in values]
    assert together == [cell(**value) for value in values]
    assert [made.id for made in together] == [cell(**value).id for value in values]
    assert len({id(made.attack) for made in together}) == len({id(made.data) for made in together}) == 1


def test_a_parser_tells_values_apart_that_are_equal_in_python() -> None:
    parser = Parser()
    parser.cell(SMALL | {"data": {"name": "builtin-short", "rows": 1}})
    with pytest.raises(UserError, match="'rows' is True"):
        parser.cell(SMALL | {"data": {"name": "builtin-short", "rows": True}})


def test_the_id_is_twelve_hexadecimal_digits() -> None:
    assert len(cell().id) == 12
    assert set(cell().id) <= set("0123456789abcdef")


def test_setting_tells_where_the_removal_rows_come_from() -> None:
    assert cell().setting == "in-domain"
    assert cell(removal={"name": "builtin-explained"}).setting == "out-of-domain"


@pytest.mark.parametrize("what", SAME_VICTIM)
def test_the_victim_does_not_depend_on(what: str) -> None:
    assert cell(**SAME_VICTIM[what]).attack_key == cell().attack_key


def test_the_victim_depends_on_each_place_of_the_trigger() -> None:
    attacks = [{"name": "sentence_trigger", "insertion": place} for place in ("start", "end", "random")]
    assert len({cell(attack=attack).attack_key for attack in attacks}) == 3
    assert cell(attack=attacks[0]).attack_key == cell().attack_key


@pytest.mark.parametrize("what", OTHER_VICTIM)
def test_the_victim_depends_on(what: str) -> None:
    assert cell(**OTHER_VICTIM[what]).attack_key != cell().attack_key


def test_the_victim_depends_on_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"weights": torch.zeros(1)}, tmp_path / "model.safetensors")
    first = cell(model=str(tmp_path)).attack_key
    save_file({"weights": torch.ones(1)}, tmp_path / "model.safetensors")
    assert len({first, cell(model=str(tmp_path)).attack_key, cell().attack_key}) == 3


def test_the_victim_depends_on_the_attacks_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell(defense="sft")
    keys = before.attack_key, before.defense_key, evaluation_keys(before)
    changed_code(monkeypatch, "sande.defenses.sft")
    assert cell(defense="sft").attack_key == keys[0]
    assert cell(defense="sft").defense_key != keys[1]
    changed_code(monkeypatch, "sande.attacks.sentence_trigger")
    assert cell(defense="sft").attack_key != keys[0]
    assert (before.attack_key, before.defense_key) == keys[:2], "a cell stays as it was made"


@pytest.mark.parametrize("what", OTHER_DEFENDED)
def test_the_defended_model_depends_on(what: str) -> None:
    assert cell(**({"defense": "sft"} | OTHER_DEFENDED[what])).defense_key != cell(defense="sft").defense_key


def test_own_answers_depend_on_their_bound_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(most: int | None) -> Cell:
        return cell(defense="sft", removal=SMALL["removal"] | {"own_answers": most})

    own = removed(16)
    assert removed(17).defense_key != own.defense_key
    assert Cell.parse(own.settings()) == own
    changed_code(monkeypatch, "sande.inference.own_answers")
    keys.training_rows.cache_clear()
    assert removed(16).defense_key != own.defense_key
    keys.training_rows.cache_clear()


@pytest.mark.parametrize("what", ["test rows", "metrics", "floor"])
def test_the_defended_model_does_not_depend_on(what: str) -> None:
    assert cell(defense="sft", **SAME_VICTIM[what]).defense_key == cell(defense="sft").defense_key


@pytest.mark.parametrize("what", OTHER_DPO)
def test_a_model_of_preferences_depends_on(what: str) -> None:
    assert cell(**({"defense": DPO} | OTHER_DPO[what])).defense_key != cell(defense=DPO).defense_key


@pytest.mark.parametrize("what", [what for what in OTHER_DEFENDED if what.startswith("removal")])
def test_a_model_of_preferences_does_not_depend_on(what: str) -> None:
    assert cell(defense=DPO, **OTHER_DEFENDED[what]).defense_key == cell(defense=DPO).defense_key


def test_one_model_of_preferences_serves_in_domain_and_out_of_domain(store: LocalStore) -> None:
    both = [
        cell(defense=DPO, removal=SMALL["removal"] | {"name": f"builtin-{name}"}) for name in ("short", "explained")
    ]
    assert [one.setting for one in both] == ["in-domain", "out-of-domain"]
    kinds = [stage.kind for stage in make_plan(both, store).missing]
    assert {kind: kinds.count(kind) for kind in kinds} == {"attack": 1, "defend": 1, "evaluate": 2}


def test_the_content_of_a_preference_file_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    pairs = tmp_path / "pairs.jsonl"
    keys = []
    for reply in "ab":
        pairs.write_text(json.dumps({"prompt": "?", "chosen": reply, "rejected": "c"}))
        keys.append(cell(defense={"name": "dpo", "preferences": {"name": "pairs"}}).defense_key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(("defense", "setting"), [("sande_rounds", "elsewhere"), ("scan_and_clean", "scan_data")])
def test_the_content_of_the_rows_that_a_setting_names_changes_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defense: str, setting: str
) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    keys = []
    for output in "ab":
        write_row(tmp_path, "mine", output)
        made = cell(defense={"name": defense, setting: {"name": "mine"}}, metrics=["asr"])
        keys.append((made.defense_key, cell(defense=defense).defense_key))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]
    with pytest.raises(UserError, match=r"^no data set is called 'nonsense' and .*; there are: "):
        cell(defense={"name": defense, setting: {"name": "nonsense"}})


@pytest.mark.parametrize("name", ["nonsense", "builtin-short", "alpaca"])
def test_an_unknown_preference_set_is_one_sentence_with_those_there_are(name: str) -> None:
    with pytest.raises(UserError, match=f"^no data set is called '{name}'; there are: .*hh_rlhf") as caught:
        cell(defense={"name": "dpo", "preferences": {"name": name}})
    assert "\n" not in str(caught.value)


def test_without_a_defense_the_victim_is_what_is_evaluated() -> None:
    assert cell().defense_key == cell().attack_key
    assert cell(removal={"name": "builtin-explained"}).defense_key == cell().defense_key


def test_a_setting_of_one_metric_changes_its_key_alone() -> None:
    before = evaluation_keys(cell(metrics=["asr", "false_trigger_rate"]))
    after = evaluation_keys(cell(metrics=[{"name": "asr", "new_tokens": 3}, "false_trigger_rate"]))
    assert {name for name in before if before[name] != after[name]} == {"asr"}


def test_the_code_of_one_metric_changes_its_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ["asr", "false_trigger_rate", ACCURACY]
    before = evaluation_keys(cell(metrics=metrics))
    changed_code(monkeypatch, "sande.metrics.accuracy")
    after = evaluation_keys(cell(metrics=metrics))
    assert {name for name in before if before[name] != after[name]} == {"accuracy"}


def test_the_order_of_metrics_changes_no_key() -> None:
    assert evaluation_keys(cell(metrics=["asr", ACCURACY])) == evaluation_keys(cell(metrics=[ACCURACY, "asr"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": SMALL["data"] | {"test_rows": 9}},
        {"data": SMALL["data"] | {"max_prompt_tokens": 40}},
        {"attack_seed": 1},
        {"defense": "sft"},
    ],
)
def test_an_outcome_depends_on_test_rows_and_model(changes: dict[str, Any]) -> None:
    before, after = evaluation_keys(cell()), evaluation_keys(cell(**changes))
    assert all(before[name] != after[name] for name in before)


def write_row(folder: Path, name: str, output: str) -> None:
    row = json.dumps({"instruction": "Say it.", "output": output})
    (folder / f"{name}.jsonl").write_text(f"{row}\n")


def test_the_content_of_a_data_file_changes_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    write_row(tmp_path, "mine", "One.")
    write_row(tmp_path, "yours", "One.")
    before, defended = cell(data={"name": "mine"}), cell(removal={"name": "mine"}, defense="sft")
    write_row(tmp_path, "mine", "Another.")
    after, defended_after = cell(data={"name": "mine"}), cell(removal={"name": "mine"}, defense="sft")
    assert after.attack_key != before.attack_key
    assert all(evaluation_keys(after)[name] != key for name, key in evaluation_keys(before).items())
    assert defended_after.attack_key == defended.attack_key
    assert defended_after.defense_key != defended.defense_key


def test_the_content_of_a_question_file_changes_the_accuracy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    questions = tmp_path / "arc_easy.jsonl"
    questions.write_text('{"question": "?", "choices": ["a", "b"], "answer": 0}\n')
    metrics = ["asr", {"name": "accuracy", "task": "arc_easy"}]
    before = evaluation_keys(cell(metrics=metrics))
    questions.write_text('{"question": "?", "choices": ["a", "b"], "answer": 1}\n')
    after = evaluation_keys(cell(metrics=metrics))
    assert {name for name in before if before[name] != after[name]} == {"accuracy"}
