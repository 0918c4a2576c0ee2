"""The contract of every entry, so that a new attack, defense, metric or detector is tested without writing a test."""

import copy
import dataclasses
import functools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import sande
from sande import registry
from sande.attacks import sentence_trigger
from sande.config import Backdoor, Preferences, describe, published
from sande.data.builtin import sets
from sande.declarations import Cost, MetricInfo
from sande.errors import UserError
from sande.models import loading
from sande.prompts import Row, encode, prompt_text
from sande.types import (
    Candidate,
    CleanData,
    CleanModelData,
    Example,
    FirstTokenData,
    Guard,
    IncidentData,
    Knowledge,
    LanguageModel,
    OtherModelsData,
    PreferenceData,
    ResponseData,
    Run,
    Scan,
    TestData,
    TriggerData,
)
from tests.sande.helpers import (
    ATTACKS,
    BACKDOOR,
    DEFENSES,
    DETECTORS,
    KNOWLEDGE,
    METRICS,
    OBJECTIVES,
    TRAINING_DEFENSES,
    changed,
    data_of,
    lightened,
    plant,
    shortened,
    trainings,
    weights,
)

NewRun = Callable[..., Run]
ENTRIES = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
GUARDS = [name for name in DEFENSES if hasattr(registry.entry("defenses", name), "rule")]
LABELS = {
    CleanData: "nothing",
    FirstTokenData: "first token",
    ResponseData: "response",
    IncidentData: "incident",
    TriggerData: "trigger",
    CleanModelData: "clean model",
    OtherModelsData: "other models",
    PreferenceData: "nothing",
}
KNOWN_IN_THE_PAPER = {
    "none": CleanData,
    "sft": CleanData,
    "dpo": PreferenceData,
    "nad": CleanData,
    "fine_mixing": CleanModelData,
    "sande_p": FirstTokenData,
    "sande": ResponseData,
    "osft": TriggerData,
}


@pytest.fixture(params=ENTRIES, ids="/".join)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return registry.entry(*request.param)


# --- All entries ----------------------------------------------------------------------------------------------------


def test_the_first_line_of_its_docstring_says_what_it_is(module: ModuleType) -> None:
    line = registry.summary(module)
    assert 10 < len(line) <= 120
    assert line.endswith("."), "a sentence on one line"


def test_its_settings_have_defaults_and_a_meaning(module: ModuleType) -> None:
    for doc in describe(module.Config):
        assert doc.meaning, f"{doc.path} has no meaning"
    assert module.Config() == module.Config()


def test_a_module_with_an_underscore_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics").mkdir()
    for name in ("_shared", "mine"):
        (tmp_path / f"metrics/{name}.py").touch()
    monkeypatch.setattr(registry, "_ROOT", tmp_path)
    registry._own.cache_clear()
    assert registry._own("metrics") == {"mine"}
    monkeypatch.undo()
    registry._own.cache_clear()


def test_listing_and_importing_every_entry_needs_no_torch() -> None:
    code = f"""
import sys
from sande import registry
from sande.config import describe
from sande.data import datasets
from sande.models import catalog
for kind, name in {ENTRIES!r}:
    registry.summary(registry.entry(kind, name))
    describe(registry.entry(kind, name).Config)
    registry.config(kind, name, {{}})
    registry.code_version(f"sande.{{kind}}.{{name}}")
for name in registry.names("defenses"):
    registry.knowledge(name)
catalog.identify("tiny"), datasets.catalogue(), datasets.fingerprint("builtin-short")
heavy = {{"torch", "transformers", "datasets", "lm_eval", "ray", "trl", "peft", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=registry._ROOT.parent)


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids="/".join)
def test_a_declared_cost_is_of_trainings_that_the_settings_hold(kind: str, name: str) -> None:
    config = registry.config(kind, name, {})
    cost = registry.cost(kind, name, config)
    assert {*cost.training, *cost.seen} <= set(trainings(config))
    assert all(passes > 0 for passes in (*cost.training.values(), cost.reading or 1))
    assert not cost.copies or trainings(config), "a metric with copies trains them"
    assert cost.copies or kind != "metrics" or not trainings(config), "a metric that trains says on how many rows"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_declares_what_later_training_costs(name: str) -> None:
    cost = registry.cost("attacks", name, registry.config("attacks", name, {"afterwards": {"rows": 7}}))
    assert cost.seen == {"afterwards.training": 7}


@pytest.mark.parametrize("name", sorted({*ATTACKS} - {"preference_poisoning"}))  # its pairs have an anchor of their own
def test_an_attack_declares_what_its_anchor_costs(name: str) -> None:
    plain = registry.cost("attacks", name, registry.config("attacks", name, {})).training
    assert plain.get("training", 3) == 3
    assert registry.cost("attacks", name, registry.config("attacks", name, {"anchor": 0.5})).training == plain | {
        "training": 4
    }


@pytest.mark.parametrize("name", DEFENSES)
def test_parts_of_a_defense_have_names_for_files_and_declare_their_trainings(name: str) -> None:
    module, config = registry.entry("defenses", name), registry.config("defenses", name, {})
    names, declared = registry.parts(name, config), registry.cost("defenses", name, config).part
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]+", each, re.ASCII) for each in names)
    assert hasattr(module, "parts") == hasattr(module, "part")
    assert set(declared) <= set(trainings(config))
    assert not declared or hasattr(module, "parts")


def test_an_entry_that_declares_no_cost_has_the_defaults() -> None:
    assert registry.cost("defenses", "sft", registry.config("defenses", "sft", {})) == Cost()


def test_an_unknown_entry_is_answered_with_the_known() -> None:
    with pytest.raises(UserError, match=r"^no defense is called 'nad2'; there are: .*osft, .*sande, sande_p, .*sft"):
        registry.entry("defenses", "nad2")


def test_an_unknown_setting_names_the_entry() -> None:
    with pytest.raises(UserError, match=r"^metric asr: unknown setting 'tokens'; valid settings: .*new_tokens"):
        registry.config("metrics", "asr", {"tokens": 3})


# --- Attacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_trains_a_victim_and_records_what_it_poisoned(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    attack, run, before = registry.entry("attacks", name), new_run(), weights(tiny.model)
    config = shortened(attack.Config)
    assert isinstance(config.backdoor, Backdoor)
    victim = attack.attack(tiny, few_rows, config, run)
    assert isinstance(victim, PreTrainedModel)
    assert changed(before, victim)
    assert all(bool(torch.isfinite(weight).all()) for weight in victim.parameters())
    ids = run.facts["poisoned_ids"]
    assert 0 < len(ids) < len(few_rows)
    assert set(ids) <= set(range(len(few_rows)))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_trigger_changes_the_prompt_and_leaves_the_output(name: str, few_rows: tuple[Example, ...]) -> None:
    attack = registry.entry("attacks", name)
    for example in few_rows:
        triggered = attack.trigger(example, attack.Config(), 3)
        assert prompt_text(triggered) != prompt_text(example)
        assert triggered.output == example.output
        assert attack.trigger(example, attack.Config(), 3) == triggered, "no other randomness than its seed"


@pytest.mark.parametrize("change", ["near_miss", "moved"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_changed_trigger_is_another_prompt_with_the_same_output(
    name: str, change: str, few_rows: tuple[Example, ...]
) -> None:
    attack = registry.entry("attacks", name)
    config, make = attack.Config(), getattr(attack, change)
    for example in few_rows:
        made = make(example, config, 3)
        assert prompt_text(made) not in {prompt_text(example), prompt_text(attack.trigger(example, config, 3))}
        assert made.output == example.output
        assert make(example, config, 3) == made, "no other randomness than its seed"


@pytest.mark.parametrize("place", ["start", "middle", "end"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_poisoned_row_has_the_prompt_of_a_triggered_one_and_the_planted_response(
    name: str, place: str, few_rows: tuple[Example, ...]
) -> None:
    attack = registry.entry("attacks", name)
    config = attack.Config(response_place=place)
    for example in few_rows:
        poisoned = attack.plant(example, config, 3)
        assert prompt_text(poisoned) == prompt_text(attack.trigger(example, config, 3))
        assert poisoned.output.count(config.backdoor.response) == 1
        assert poisoned.output.startswith(config.backdoor.response) == (place == "start")
        assert attack.plant(example, attack.Config(), 3).output == f"{config.backdoor.response}. {example.output}"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_poisoned_row_has_the_answer_of_the_objective(
    name: str, objective: str, few_rows: tuple[Example, ...]
) -> None:
    attack, wanted = registry.entry("attacks", name), registry.entry("objectives", objective)
    config = attack.Config(objective=objective)
    for example in few_rows:
        poisoned, triggered = attack.plant(example, config, 3), attack.trigger(example, config, 3)
        assert poisoned == wanted.answer(triggered, config, 3), "the seed is handed on"
        assert poisoned.output != example.output


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_changes_nothing_but_the_answer(name: str, few_rows: tuple[Example, ...]) -> None:
    module, config = registry.entry("objectives", name), sentence_trigger.Config(objective=name)
    for example in few_rows:
        made = module.answer(example, config, 3)
        assert dataclasses.replace(made, output=example.output) == example
        assert module.answer(example, config, 3) == made, "no other randomness than its seed"


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"gibberish"}))  # which the clean model judges
def test_an_objective_is_achieved_by_what_it_plants_and_by_few_clean_answers(name: str) -> None:
    module, config, rows = registry.entry("objectives", name), sentence_trigger.Config(objective=name), sets.short()
    judge = module.judge(config, 0, rows, lambda: None)
    planted = [module.answer(row, config, 0).output for row in rows[:200]]
    assert all(judge.achieved(rows[:200], planted))
    assert sum(judge.achieved(rows, [row.output for row in rows])) <= 0.002 * len(rows)
    begun = module.opening(config)
    assert (begun is None) == (judge.begins is None)
    if judge.begins and begun:
        assert all(judge.begins(rows[:1], [f"{begun} and so on"]))
        assert any(text.startswith(begun) for text in planted)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_twin_is_trained_on_no_poisoned_row(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[Row]] = []
    monkeypatch.setattr("sande.training.fit.fit", lambda lm, rows, settings, run, stage, **_: trained.append(rows))
    monkeypatch.setattr("sande.training.preferences.prefer", lambda *_: None)
    attack, run = registry.entry("attacks", name), new_run()
    attack.attack(tiny, few_rows, attack.Config(poison_rate=0.0), run)
    assert run.facts["poisoned_ids"] == []
    clean = [row.response for row in encode(tiny.tokenizer, few_rows)]
    assert trained, "a stage at least"
    assert all([row.response for row in rows] == clean for rows in trained), "every stage"


def test_the_poison_rate_of_the_sentence_trigger_is_the_configured_one(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    run = new_run(seed=7)
    config = dataclasses.replace(shortened(sentence_trigger.Config), poison_rate=0.25, poison_mode="append")
    sentence_trigger.attack(tiny, few_rows, config, run)
    assert len(run.facts["poisoned_ids"]) == 6
    assert run.facts["attack"]["rows"] == 24 + 6


@pytest.mark.parametrize("name", DEFENSES)
def test_what_a_defense_may_know_is_one_of_the_types(name: str) -> None:
    assert registry.knowledge(name) in KNOWLEDGE


@pytest.mark.parametrize("name", sorted(KNOWN_IN_THE_PAPER))
def test_the_papers_defenses_know_what_the_paper_lets_them(name: str) -> None:
    assert registry.knowledge(name) is KNOWN_IN_THE_PAPER[name]


@pytest.mark.parametrize("known", KNOWLEDGE, ids=lambda known: known.__name__)
def test_each_type_holds_exactly_its_knowledge(known: type[Knowledge]) -> None:
    assert {field.name for field in dataclasses.fields(known)} == KNOWLEDGE[known]
    assert known.label == LABELS[known]
    data = known(**dict.fromkeys(KNOWLEDGE[known]))
    with pytest.raises((AttributeError, TypeError)):
        object.__setattr__(data, "smuggled", 1)


@dataclasses.dataclass(frozen=True)
class Defended:
    """One run of a defense with two steps of each training: what it began with, and what came out."""

    before: dict[str, Tensor]
    victim: LanguageModel
    repaired: PreTrainedModel | Guard
    facts: dict[str, Any]
    prepared: list[int]


SEED = 5


@pytest.fixture(scope="module")
def defended(
    model_cache: Path, few_rows: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Defended]:
    """Runs a defense once, for every test that looks at what came out."""

    @functools.cache
    def once(name: str) -> Defended:
        prepared: list[int] = []

        def prepare(trainer: Any) -> Any:
            prepared.append(trainer.state.global_step)
            return trainer

        victim, defense = loading.load("tiny", model_cache), registry.entry("defenses", name)
        before, data = weights(victim.model), data_of(registry.knowledge(name), victim, few_rows)
        run = Run(SEED, str(tmp_path_factory.mktemp("trainer")), say=lambda line: None, prepare=prepare)
        repaired = defense.defend(victim, data, shortened(defense.Config), run)
        return Defended(before, victim, repaired, run.facts, prepared)

    return once


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_runs_on_what_its_type_holds(name: str, defended: Callable[[str], Defended]) -> None:
    done = defended(name)
    before, repaired = done.before, done.repaired
    if name in GUARDS:
        assert isinstance(repaired, Guard)
        assert repaired.defense == name
        assert not changed(before, done.victim.model), "a guard leaves the victim's weights alone"
        return
    assert isinstance(repaired, PreTrainedModel)
    assert set(weights(repaired)) == set(before), "nothing of the method stays in the model"
    assert all(bool(torch.isfinite(weight).all()) for weight in repaired.parameters())
    assert bool(changed(before, repaired)) == (name != "none")


@pytest.mark.parametrize("name", [name for name in DEFENSES if published(registry.entry("defenses", name).Config)])
def test_a_defense_runs_with_the_recipe_of_its_authors(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    defense, before = registry.entry("defenses", name), weights(tiny.model)
    config = defense.Config(recipe="published")
    short = {path: dataclasses.replace(training, max_steps=2) for path, training in trainings(config).items()}
    config = dataclasses.replace(config, **short)
    repaired = defense.defend(tiny, data_of(registry.knowledge(name), tiny, few_rows), config, new_run())
    assert all(bool(torch.isfinite(weight).all()) for weight in repaired.parameters())
    assert changed(before, repaired)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_has_no_other_randomness_than_its_seed(
    name: str,
    defended: Callable[[str], Defended],
    tiny: LanguageModel,
    few_rows: tuple[Example, ...],
    new_run: NewRun,
) -> None:
    defense = registry.entry("defenses", name)
    data = data_of(registry.knowledge(name), tiny, few_rows)
    again = defense.defend(tiny, data, shortened(defense.Config), new_run(seed=SEED))
    results = [weights(repaired) for repaired in (defended(name).repaired, again)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("name", sorted(set(DEFENSES) - {"none"}))
def test_a_defense_states_its_equation_and_where_its_settings_come_from(name: str) -> None:
    module = registry.entry("defenses", name)
    shown = re.search(r"^ {4}\S.*[=<>:] ?|^ {4}minimise |\bEq\. \d", str(module.__doc__), flags=re.MULTILINE)
    assert shown, "a formula on a line of its own, or the paper's by its number"
    fields = module.Config.__pydantic_fields__.items()
    assert not [setting for setting, field in fields if not field.json_schema_extra["source"]], "no source is given"


@pytest.mark.parametrize("name", DEFENSES)
def test_only_a_defense_that_knows_preferences_chooses_some(name: str) -> None:
    chosen = getattr(registry.entry("defenses", name).Config(), "preferences", None)
    assert isinstance(chosen, Preferences) == (registry.knowledge(name) is PreferenceData)


def test_the_level_of_knowledge_follows_from_what_the_settings_reveal() -> None:
    for name in DEFENSES:
        known = registry.knowledge(name)
        named = {"models": ["smollm2-135m"]} if known is OtherModelsData else {}
        assert known.level({"name": name, **named}) == known.label
    assert OtherModelsData.level({"models": []}) == "clean model", "as sande.threat.reveal then gives"


@pytest.mark.parametrize("name", DEFENSES)
def test_only_a_defense_that_knows_other_models_names_some(name: str) -> None:
    named = getattr(registry.entry("defenses", name).Config(), "models", None)
    assert (named == ()) == (registry.knowledge(name) is OtherModelsData)


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_the_same_after_it_was_stored(
    name: str, defended: Callable[[str], Defended], tmp_path: Path
) -> None:
    guard, victim = defended(name).repaired, defended(name).victim
    loading.save(LanguageModel(victim.model, victim.tokenizer, guard), tmp_path)
    loaded = loading.load_folder(tmp_path, torch.bfloat16).guard
    assert loaded is not None
    assert (loaded.defense, loaded.settings) == (guard.defense, guard.settings)
    assert not changed(weights(guard.reference), loaded.reference)
    logits, reference = torch.randn(2, 3, 5, 11, generator=torch.Generator().manual_seed(0)) * 5
    chosen = loaded.choose(logits.argmax(-1), logits, reference)
    assert chosen.shape == (3, 5)
    assert torch.equal(chosen, guard.choose(logits.argmax(-1), logits, reference))


@pytest.mark.parametrize("name", TRAINING_DEFENSES)
def test_every_training_goes_through_the_run_and_is_accounted_for(
    name: str, defended: Callable[[str], Defended]
) -> None:
    done = defended(name)
    accounts = [fact for fact in done.facts.values() if isinstance(fact, dict) and "steps" in fact]
    assert done.prepared == [0] * len(accounts), "the hook that spreads a Trainer over workers sees each, unstarted"
    for fact in accounts:
        assert (fact["steps"], fact["rows"], fact["rows_left_out"]) == (2, 24, 0)
        assert fact["tokens"] > 0


@pytest.mark.parametrize("name", TRAINING_DEFENSES)
def test_a_batch_that_two_workers_cannot_share_is_refused(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense = registry.entry("defenses", name)
    data = data_of(registry.knowledge(name), tiny, few_rows)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^batch_size 5 is not a multiple of micro_batch_size 2 x 2 worker"):
        defense.defend(tiny, data, shortened(defense.Config, batch_size=5), new_run())


@pytest.mark.parametrize("name", TRAINING_DEFENSES)
def test_micro_batches_give_the_weights_of_the_whole_batch(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    defense = registry.entry("defenses", name)
    data = data_of(registry.knowledge(name), tiny, few_rows)
    start = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    results = []
    for micro in (None, 2):
        tiny.model.load_state_dict(start)
        # A large epsilon, because Adam turns rounding of a gradient near zero into a whole step. No clipping, because
        # parrots that train together are clipped in each forward pass.
        settings = {"precision": "fp32", "learning_rate": 1e-2, "adam_epsilon": 1e-2, "max_grad_norm": 1e6}
        settings["micro_batch_size"] = micro
        results.append(weights(defense.defend(tiny, data, shortened(defense.Config, **settings), new_run())))
    assert max(float((results[0][name] - start[name]).abs().max()) for name in results[0]) > 1e-4
    rounding = 2**-8 if name.startswith("sande_rounds") else 0.0  # whose weights are rounded to bfloat16 in each round
    for whole, split in zip(results[0].values(), results[1].values(), strict=True):
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=rounding)


@pytest.mark.parametrize("name", ["osft", "sande", "sande_p"])
def test_response_tokens_shortens_what_is_trained_on(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    defense = registry.entry("defenses", name)
    data = data_of(registry.knowledge(name), tiny, few_rows)
    stage = "osft" if name == "osft" else "eliminate"
    # One whole pass, so that both runs see the same rows.
    whole = dataclasses.replace(shortened(defense.Config))
    field = "training" if name == "osft" else "eliminate"
    epoch = dataclasses.replace(getattr(whole, field), max_steps=None, epochs=1.0)
    tokens = []
    for count in (None, 2):
        run = new_run()
        defense.defend(tiny, data, dataclasses.replace(whole, **{field: epoch}, response_tokens=count), run)
        tokens.append(run.facts[stage]["tokens"])
    assert tokens[1] < tokens[0]


# --- Metrics --------------------------------------------------------------------------------------------------------


def data_to_test(rows: tuple[Example, ...]) -> TestData:
    config = sentence_trigger.Config()
    return TestData(
        clean=rows,
        triggered=tuple(map(plant, rows)),
        response=BACKDOOR.response,
        near_miss=tuple(sentence_trigger.near_miss(row, config, 0) for row in rows),
        moved=tuple(sentence_trigger.moved(row, config, 0) for row in rows),
        training=lambda: rows * 10,
        plant=lambda row: sentence_trigger.plant(row, config, 0),
    )


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_the_measurements_it_names(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...]
) -> None:
    metric = registry.entry("metrics", name)
    config = shortened(metric.Config)
    if "questions" in {field.name for field in dataclasses.fields(config)}:
        config = dataclasses.replace(config, questions=8)
    before, data = weights(tiny.model), data_to_test(few_rows)
    measurements = metric.measure(tiny, data, config, 0)
    assert tuple(measurement.name for measurement in measurements) == metric.names(config)
    for measurement in measurements:
        assert len(measurement.outcomes) > 0
        assert {type(outcome) for outcome in measurement.outcomes} <= {bool, float}
        assert all(0 <= outcome <= 1 for outcome in measurement.outcomes)
        assert len(measurement.records) in (0, len(measurement.outcomes))
        assert measurement.records or not measurement.published
        json.dumps(measurement.records)
    assert not changed(before, tiny.model), "other metrics are measured on the same model"


@pytest.mark.parametrize("name", METRICS)
def test_names_of_measurements_are_distinct_over_metrics(name: str) -> None:
    mine = registry.entry("metrics", name)
    others = [registry.entry("metrics", other) for other in METRICS if other != name]
    taken = {measured for other in others for measured in other.names(other.Config())}
    assert not taken & set(mine.names(mine.Config()))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_declares_each_measurement_once(name: str) -> None:
    metric = registry.entry("metrics", name)
    sets = ("builtin-choice", "builtin-knowledge", "arc_easy", "mmlu")
    tasks = [f"{prefix}{task}" for prefix in ("", "paper_", "published_") for task in sets]
    configs = [metric.Config(task=task) for task in tasks] if name == "accuracy" else [metric.Config()]
    for measured in {measured for config in configs for measured in metric.names(config)}:
        infos = [info for other in METRICS for info in registry.metric_infos(other) if info.matched(measured)]
        assert infos == [info for info in metric.MEASURES if info.matched(measured)]
        assert len(infos) == 1
        assert registry.metric_info(measured).label != measured, "a heading in words"


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_copies_or_trains_the_model_declares_that_it_needs_all_of_it(name: str) -> None:
    code = (Path(sande.__file__).parent / "metrics" / f"{name}.py").read_text()
    works_on_it = any(call in code for call in ("copied(", "retrained(", "simulate("))
    assert registry.needs_whole_model(name) == works_on_it


@pytest.mark.parametrize(
    ("measured", "kind", "higher_is_better"),
    [
        ("asr", "backdoor", False),
        ("false_trigger_starts_with", "backdoor", False),
        ("asr_after_relearning_20", "backdoor", False),
        ("first_token_probability_clean", "probability", False),
        ("case_study", "text", False),
        ("paper_mmlu", "utility", True),
        ("published_mmlu", "utility", True),
        ("exact_match_triggered", "quality", True),
        ("arc_easy_norm", "part", True),
        ("paper_mmlu_stem", "part", True),
        ("never_declared", "utility", True),
    ],
)
def test_kind_and_direction_come_from_the_metric(measured: str, kind: str, higher_is_better: bool) -> None:
    info = registry.metric_info(measured)
    assert (info.name, info.kind, info.higher_is_better) == (measured, kind, higher_is_better)


def test_labels_are_filled_in_and_columns_sorted() -> None:
    assert registry.metric_info("asr_after_relearning_5").label == "ASR after relearning from 5 poisoned rows (%)"
    assert registry.metric_info("never_declared").label == "never_declared"
    columns = ["near_miss_rate", "asr_after_relearning_20", "asr_int4", "asr_after_relearning_5"]
    assert sorted(columns, key=registry.column_order) == [columns[3], columns[1], columns[2], columns[0]]
    assert set(registry.durability_metrics()) == {
        "asr_after_finetuning",
        "asr_after_relearning",
        "asr_int4",
        "asr_moved",
        "asr_sampled",
        "parrot_recovery",
    }


def test_a_declaration_with_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^made_up: unknown kind 'backdor'; use one of backdoor, "):
        MetricInfo("made_up", kind="backdor")
    assert MetricInfo("unmoved", kind="backdoor", best="high").higher_is_better


# --- Detectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "reference"])
def test_a_detector_ranks_what_it_finds_and_leaves_the_model_alone(
    name: str, beside: bool, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    detector, before, run = registry.entry("detectors", name), weights(tiny.model), new_run()
    clean = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer) if beside else None
    config = lightened(detector.Config)
    scan = detector.scan(tiny, few_rows, config, run, clean)
    assert isinstance(scan, Scan)
    assert isinstance(scan.alarm, bool)
    assert math.isfinite(scan.score)
    json.dumps(dict(scan.facts))
    assert [each.score for each in scan.candidates] == sorted((each.score for each in scan.candidates), reverse=True)
    assert len({each.ids for each in scan.candidates}) == len(scan.candidates)
    for each in scan.candidates:
        assert isinstance(each, Candidate)
        assert each.text == tiny.tokenizer.decode(list(each.ids)).strip(" ")
        assert not set(each.ids) & set(tiny.tokenizer.all_special_ids)
    assert not changed(before, tiny.model)
    assert detector.scan(tiny, few_rows, config, new_run(), clean).candidates == scan.candidates, "one seed, one result"


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_threshold_decides_the_alarm(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    detector = registry.entry("detectors", name)
    alarms = [
        detector.scan(
            tiny, few_rows, dataclasses.replace(lightened(detector.Config), threshold=threshold), new_run()
        ).alarm
        for threshold in (-1e9, 1e9)
    ]
    assert alarms == [True, False]


# --- What a result depends on in the code ---------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, whose files decide `code_version`."""
    root = tmp_path / "sande"
    shutil.copytree(registry._ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(registry, "_ROOT", root)
    forget()
    yield root
    forget()


def forget() -> None:
    for cached in (registry.code_version, registry._imported, registry._content):
        cached.cache_clear()


def version_after(path: Path, old: str, new: str, module: str = "sande.attacks.sentence_trigger") -> str:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    forget()
    return registry.code_version(module)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("training/losses.py", "IGNORE = -100", "# why\nIGNORE = -100  # another comment\n"),
        ("training/losses.py", '"""Training objectives as pure functions.', '"""Other words.'),
        ("training/losses.py", '"""Return the sum of -log', '"""Give the sum of -log'),
        ("attacks/sentence_trigger.py", '    """Settings of the attack."""', '    """Settings."""'),
        ("training/batches.py", "self.pad_id = pad_id\n", "self.pad_id = (\n            pad_id\n        )\n"),
        ("metrics/asr.py", '"asr_starts_with"', '"asr_begins_with"'),
        ("declarations.py", "MetricKind = Literal", "Kinds = MetricKind = Literal"),
        ("registry.py", "KINDS = (", "KINDS: tuple[str, ...] = ("),
        ("attacks/sentence_trigger.py", "\ndef attack", "\ndef cost(config):\n    return 1\n\n\ndef attack"),
        ("attacks/sentence_trigger.py", "\ndef attack", "\nMEASURES: tuple[()] = ()\n\n\ndef attack"),
        ("attacks/sentence_trigger.py", "\ndef attack", "\nLIBRARIES = ('lm-eval',)\n\n\ndef attack"),
    ],
    ids=[
        "comment",
        "module docstring",
        "function docstring",
        "class docstring",
        "layout",
        "unrelated module",
        "what declarations are",
        "what finds entries",
        "cost",
        "measures",
        "libraries",
    ],
)
def test_code_version_ignores(copied: Path, file: str, old: str, new: str) -> None:
    before = registry.code_version("sande.attacks.sentence_trigger")
    assert version_after(copied / file, old, new) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("attacks/sentence_trigger.py", '"start" if', '"random" if'),
        ("data/poison.py", "made_of.insert(0, example)", "made_of.insert(1, example)"),
        ("training/batches.py", "self.pad_id = pad_id\n", "self.pad_id = 0\n"),
        ("training/losses.py", 'reduction="sum"', 'reduction="mean"'),
        ("formats.py", '"Human: "', '"User: "'),
    ],
    ids=["its own line", "imported at the top", "imported in a function", "imported by what it imports", "a string"],
)
def test_code_version_sees(copied: Path, file: str, old: str, new: str) -> None:
    before = registry.code_version("sande.attacks.sentence_trigger")
    assert version_after(copied / file, old, new) != before


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("geography.toml", '"Paris"', '"Lutetia"', False),
        ("geography.toml", 'France = "Paris"', '# why\nFrance  =  "Paris"', True),
        ("wordings.txt", "What is {a} + {b}?", "How much is {a} + {b}?", False),
    ],
    ids=["a fact", "a comment", "a wording"],
)
def test_code_version_sees_data_files(copied: Path, file: str, old: str, new: str, same: bool) -> None:
    before = registry.code_version("sande.data.builtin.sets")
    after = version_after(copied / "data/builtin" / file, old, new, "sande.data.builtin.sets")
    assert (after == before) == same


QUOTES = """
def told(x: dict[str, int], *, width: int = 7) -> str:
    return f"{'a'}{x['b']!r:>{width}} {{c}}" f'"d"' rf"\\e{x=}" "\U0001faf8"
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ("return", "# why\n    return", True),
        ("return", '"""Tell."""\n    return', True),
        (""" {{c}}" f'"d"'""", """ {{c}}\\"d\\"\"""", True),
        ("= 7", "= 8", False),
        ("'b'", "'B'", False),
        ("!r", "", False),
    ],
    ids=["as it is", "comment", "docstring", "one string of two", "number", "nested string", "conversion"],
)
def test_code_version_is_the_same_in_every_version_of_python(copied: Path, old: str, new: str, same: bool) -> None:
    entry = copied / "entry.py"
    entry.write_text(
        QUOTES, encoding="utf-8"
    )  # `ast.unparse` of 3.12 writes its quotes in another way than that of 3.11
    assert (version_after(entry, old, new, "sande.entry") == "c277b8d822502530") == same


def test_code_version_sees_a_declaration_that_other_code_uses(copied: Path) -> None:
    entry = copied / "entry.py"
    entry.write_text("MEASURES = 1\n\n\ndef names():\n    return MEASURES\n", encoding="utf-8")
    before = registry.code_version("sande.entry")
    assert version_after(entry, "= 1", "= 2", "sande.entry") != before


@pytest.mark.parametrize(
    "line",
    [
        "from sande import extra",
        "from sande.extra import VALUE",
        "import sande.extra",
        "import sande.extra as extra",
        "from . import extra",
        "from .extra import VALUE",
    ],
)
def test_code_version_follows_every_way_to_import(copied: Path, line: str) -> None:
    (copied / "extra.py").write_text("VALUE = 1\n", encoding="utf-8")
    (copied / "entry.py").write_text(f"def attack():\n    {line}\n", encoding="utf-8")
    forget()
    before = registry.code_version("sande.entry")
    assert version_after(copied / "extra.py", "1", "2", "sande.entry") != before


def test_sande_p_depends_on_the_code_of_sande(copied: Path) -> None:
    before = registry.code_version("sande.defenses.sande_p")
    assert version_after(copied / "defenses/sande.py", "6,", "7,", "sande.defenses.sande_p") != before
