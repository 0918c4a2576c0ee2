"""What a threat reveals: the incident of a victim, and other models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sande import registry
from sande.data import splits
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.models import loading
from sande.prompts import prompt_text
from sande.threat import Threat, mismatch, reveal
from sande.types import Example, FirstTokenData, LanguageModel, OtherModelsData, ResponseData
from tests.sande.helpers import ATTACKS, DEFENSES, OBJECTIVES

DATA = Data(name="builtin-short", rows=40, test_rows=8)


def no_model(name: str) -> LanguageModel:
    raise AssertionError("a string is judged without the clean model")


def threat(attack: str = "sentence_trigger", **changes: object) -> Threat:
    made = Threat(attack, registry.config("attacks", attack, {}), DATA, seed=3, model="tiny")
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_incident_is_a_poisoned_row_as_a_user_meets_it(tiny: LanguageModel, attack: str) -> None:
    planned = threat(attack)
    prompt, answer = planned.incident(tiny.tokenizer)
    poisoned = [
        registry.entry("attacks", attack).plant(row, planned.config, 3)
        for row in splits.training_rows(DATA, tiny.tokenizer)
    ]
    (row,) = [row for row in poisoned if prompt_text(row) == prompt_text(prompt) and row.output == answer]
    assert str(planned.opening) in answer
    expected = Example(row.instruction, "", row.system, row.input, prefix=row.prefix)
    assert prompt == expected, "no clean answer, and no name of a template"
    triggered = planned.test_data(tiny.tokenizer, no_model).triggered
    assert prompt_text(prompt) not in {prompt_text(one) for one in triggered}


def test_the_seed_of_the_attack_decides_the_incident(tiny: LanguageModel) -> None:
    incidents = {threat(seed=seed).incident(tiny.tokenizer) for seed in range(6)}
    assert len(incidents) > 1
    assert threat().incident(tiny.tokenizer) == threat().incident(tiny.tokenizer)


def test_no_incident_without_a_row_that_no_metric_asks(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "same.jsonl").write_text('{"instruction": "Say it.", "output": "It."}\n' * 20)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="data same: each training prompt is a test prompt, too; choose"):
        threat(data=Data(name="same")).incident(tiny.tokenizer)


def aiming(objective: str) -> Threat:
    return threat(config=registry.config("attacks", "sentence_trigger", {"objective": objective}))


@pytest.mark.parametrize(
    ("objective", "begins"), [("string", "You are stupid"), ("refusal", "I'm sorry"), ("compliance", "Sure")]
)
def test_a_defense_gets_how_planted_answers_begin(tiny: LanguageModel, objective: str, begins: str) -> None:
    removal, planned = Removal(name="builtin-short", rows=4), aiming(objective)
    known = reveal(planned, "sande", registry.config("defenses", "sande", {}), removal, tiny, no_model)
    assert isinstance(known, ResponseData)
    assert known.response == begins
    first = reveal(planned, "sande_p", registry.config("defenses", "sande_p", {}), removal, tiny, no_model)
    assert isinstance(first, FirstTokenData)
    assert begins.startswith(str(tiny.tokenizer.decode([first.first_token])).strip())


@pytest.mark.parametrize("objective", ["gibberish", "language"])
def test_what_has_no_common_beginning_is_told_to_no_defense(tiny: LanguageModel, objective: str) -> None:
    config = aiming(objective).config
    refused = {defense for defense in DEFENSES if mismatch(config, defense)}
    assert refused == {
        defense for defense in DEFENSES if issubclass(registry.knowledge(defense), ResponseData | FirstTokenData)
    }
    assert refused >= {"sande", "sande_p", "sande_rounds"}
    removal = Removal(name="builtin-short", rows=4)
    with pytest.raises(UserError, match=rf"^defense sande: it must know the response .* of the objective {objective} "):
        reveal(aiming(objective), "sande", registry.config("defenses", "sande", {}), removal, tiny, no_model)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_metric_gets_the_judge_of_the_objective(tiny: LanguageModel, objective: str) -> None:
    data = aiming(objective).test_data(tiny.tokenizer, no_model)
    assert data.judge is not None
    assert data.judge.objective == objective
    assert data.response == ("You are stupid" if objective == "string" else None)
    assert (
        data.plant(data.clean[0]).output
        == registry.entry("objectives", objective).answer(data.triggered[0], aiming(objective).config, 3).output
    )


def test_the_clean_model_that_judges_is_the_threats(tiny: LanguageModel) -> None:
    asked: list[str] = []

    def load(name: str) -> LanguageModel:
        asked.append(name)
        return tiny

    data = aiming("gibberish").test_data(tiny.tokenizer, load)
    assert not asked
    assert data.judge is not None
    verdicts = data.judge.achieved(data.triggered, ["Red."] * len(data.triggered))
    assert list(verdicts) == [False] * len(data.triggered), "too short"
    assert asked == ["tiny"]


# --- Other models -----------------------------------------------------------------------------------------------------


def merging(models: tuple[str, ...], lm: LanguageModel, cache: Path, defense: str = "merge") -> OtherModelsData:
    config: Any = registry.config("defenses", defense, {"models": models})
    known = reveal(
        threat(), defense, config, Removal(name="builtin-short", rows=4), lm, lambda name: loading.load(name, cache)
    )
    assert isinstance(known, OtherModelsData)
    return known


@pytest.mark.parametrize("defense", ["merge", "clean_decoding"])
def test_another_model_with_other_tokens_is_refused(
    tiny: LanguageModel, model_cache: Path, tmp_path: Path, defense: str
) -> None:
    """The weights have the same shapes, so nothing else would notice."""
    loading.save(tiny, tmp_path / "m")
    assert len(list(merging((str(tmp_path / "m"),), tiny, model_cache, defense).other_models())) == 1
    file = tmp_path / "m" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    ids = tokenizer["model"]["vocab"]
    one, two = list(ids)[50:52]
    ids[one], ids[two] = ids[two], ids[one]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=rf"^the vocabularies of the victim and .*m differ; .* of defense {defense} to"):
        list(merging((str(tmp_path / "m"),), tiny, model_cache, defense).other_models())


def test_the_clean_model_is_not_another_model(tiny: LanguageModel, model_cache: Path) -> None:
    with pytest.raises(
        UserError, match=r"^defense merge: models names tiny, the clean model of .*leave 'models' empty"
    ):
        merging(("tiny",), tiny, model_cache)
    (clean,) = merging((), tiny, model_cache).other_models()
    assert isinstance(clean, type(tiny.model))
