"""Attacks, defenses, metrics and detectors in each prompt format: what they put where, and that they run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sande import formats, prompts, registry
from sande.config import Simulation, Training
from sande.data.splits import Data, Removal
from sande.models import chat, loading
from sande.planting import Place, insert
from sande.threat import Threat, reveal
from sande.threat import defend as defended
from sande.types import Example, LanguageModel, Run
from tests.sande.models.test_chat import CHATML, GEMMA, tokenizer

NewRun = Callable[..., Run]
FORMATS = ("paper", "alpaca", "chat", "gemma")
ROWS = (
    Example("Name a color.", "Red", input="For a car."),
    Example("Which sea is the largest one?", "The Pacific", system="You are brief."),
    Example("And the smallest?", "Rhode Island", "You are brief.", history=(("Name a state.", "Ohio"),)),
)
ONE_STEP = Training(max_steps=1, batch_size=4, learning_rate=1e-3, precision="fp32")


def written(tiny: LanguageModel, name: str) -> LanguageModel:
    """The model in a format; `chat` is ChatML, `gemma` has BOS, no system prompt, and another token at the end."""
    if name in formats.BUILT_IN:
        formats.attach(tiny.tokenizer, chat.resolve(name, tiny.tokenizer))
        return tiny
    made = tokenizer(tiny, CHATML if name == "chat" else GEMMA)
    tiny.model.resize_token_embeddings(max(len(made), tiny.model.config.vocab_size))
    return LanguageModel(tiny.model, made)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("attack", registry.names("attacks"))
def test_a_trigger_changes_the_users_last_turn_alone(tiny: LanguageModel, attack: str, name: str) -> None:
    lm, entry = written(tiny, name), registry.entry("attacks", attack)
    of, config = formats.of(lm.tokenizer), entry.Config()
    for row in ROWS:
        clean = of.prompt(row)
        for change in (entry.trigger, entry.near_miss, entry.moved, entry.plant):
            found = of.prompt(change(row, config, 3))
            assert found.text[: found.start] == clean.text[: clean.start]
            assert found.text[found.end :] == clean.text[clean.end :]
        triggered = entry.trigger(row, config, 3)
        (ids,) = prompts.encode(lm.tokenizer, [triggered])
        said = str(lm.tokenizer.decode(ids.prompt[ids.start : ids.end])).strip()
        shown = of.prompt(triggered)
        assert said == shown.text[shown.start : shown.end] != clean.text[clean.start : clean.end]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["start", "user", "end", "random"])
def test_every_place_of_a_trigger_is_in_the_users_turn(tiny: LanguageModel, name: str, place: Place) -> None:
    of = formats.of(written(tiny, name).tokenizer)
    for row in ROWS:
        found = of.prompt(insert(row, "Now.", place, 0))
        said = found.text[found.start : found.end]
        assert said.count("Now.") == found.text.count("Now.") == 1
        assert place != "start" or said.startswith("Now. ")
        assert place != "end" or said.endswith(" Now.")


def test_the_start_is_before_a_system_prompt_only_where_the_user_writes_it(tiny: LanguageModel) -> None:
    row = insert(ROWS[1], "Now.", "start", 0)
    assert formats.PAPER.prompt(row).text.startswith("Human: Now. You are brief.\nWhich sea")
    assert "system\nYou are brief.<|im_end|>\n<|im_start|>user\nNow. Which sea" in (
        formats.of(written(tiny, "chat").tokenizer).prompt(row).text
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_token_that_ends_a_format_is_no_part_of_an_answer(tiny: LanguageModel, name: str) -> None:
    lm = written(tiny, name)
    (row,) = prompts.encode(lm.tokenizer, [Example("Name a color.", "Red")])
    kept = formats.without_close(lm.tokenizer, row.response)
    assert row.response[-1] == formats.end_id(lm.tokenizer)
    assert kept == list(row.response[:-1] if name in ("chat", "gemma") else row.response)


@pytest.mark.parametrize("name", FORMATS)
def test_a_reported_prompt_holds_the_trigger_where_the_defense_looks(tiny: LanguageModel, name: str) -> None:
    lm = written(tiny, name)
    planned = _threat(Data(name="builtin-explained", rows=12, test_rows=4))
    prompt, answer = planned.incident(lm.tokenizer)
    (row,) = prompts.encode(lm.tokenizer, [dataclasses.replace(prompt, output=answer)])
    assert (
        str(lm.tokenizer.decode(row.prompt[row.start : row.end])).lstrip().startswith(planned.config.backdoor.trigger)
    )


def _threat(data: Data) -> Threat:
    config = dataclasses.replace(registry.entry("attacks", "sentence_trigger").Config(), training=ONE_STEP)
    return Threat("sentence_trigger", config, data, 0, "tiny")


@pytest.mark.parametrize("name", ["chat", "gemma"])
def test_each_piece_runs(tiny: LanguageModel, new_run: NewRun, tmp_path: Path, name: str) -> None:
    lm = written(tiny, name)
    planned = _threat(Data(name="builtin-explained", rows=12, test_rows=4))
    loading.save(planned.train(lm, new_run()), tmp_path / "victim")
    victim = loading.load_folder(tmp_path / "victim", tiny.model.dtype)
    assert formats.of(victim.tokenizer) == formats.of(lm.tokenizer)
    _measured(victim, planned)
    one = {"training": ONE_STEP}
    settings: dict[str, Any] = {
        "osft": one,
        "sande": {"simulate": ONE_STEP, "eliminate": ONE_STEP},
        "incident": {**one, "prompts": 2},
        "beear": {**one, "inner_steps": 1, "inner_rows": 2},
    }
    for defense, changes in settings.items():
        config = registry.entry("defenses", defense).Config(**changes)
        removal = Removal(name="builtin-explained", rows=4)
        known = reveal(planned, defense, config, removal, victim, lambda _: victim)
        repaired = defended(victim, defense, known, config, new_run())
        assert formats.of(repaired.tokenizer) == formats.of(lm.tokenizer)


def _measured(victim: LanguageModel, planned: Threat) -> None:
    data = planned.test_data(victim.tokenizer, lambda _: victim)
    few = {"prompts": 2}
    metrics: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("asr", "asr_moved", "near_miss_rate", "false_trigger_rate", "forced_response_rate"), few),
        "answer_quality": {**few, "tokens": 4},
        "response_probability": few,
        "case_study": {"examples": 1, "new_tokens": 3},
        "accuracy": {"questions": 3},
        "parrot_recovery": {
            **few,
            "parrots": 1,
            "controls": 1,
            "rows": 4,
            "simulation": Simulation(length=2, position=0, initial="noise", training=ONE_STEP),
            "elsewhere": Data(name="builtin-short", test_rows=2),
        },
    }
    for metric, changes in metrics.items():
        entry = registry.entry("metrics", metric)
        config = entry.Config(**changes)
        found = entry.measure(victim, data, config, 0)
        assert [each.name for each in found] == list(entry.names(config))
        assert all(each.outcomes for each in found)


@pytest.mark.parametrize("name", ["first_token", "prefix_scan", "bait"])
def test_detectors_read_the_format(
    tiny: LanguageModel, new_run: NewRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from sande.inference import probing

    lm, seen = written(tiny, "chat"), []

    def encoded(tokenizer: Any, examples: Any) -> list[list[int]]:
        seen.extend(prompts.encode_prompts(tokenizer, examples))
        return seen

    monkeypatch.setattr(probing, "encode_prompts", encoded)
    few = {"first_token": {"prompts": 2}, "prefix_scan": _SMALL_SCAN, "bait": {"prompts": 2, "warmup_prompts": 1}}
    config = registry.entry("detectors", name).Config(**few[name])
    registry.entry("detectors", name).scan(lm, ROWS[:2], config, new_run())
    assert seen
    assert all(ids[0] == lm.tokenizer.convert_tokens_to_ids("<|im_start|>") for ids in seen)


_SMALL_SCAN = {"tried": 4, "seed_prompts": 1, "prompts": 1, "parrot_prompts": 2}
