"""Where the planted response stands in an answer, what a near miss of a trigger is, and which rows become what."""

import pytest

from sande import planting
from sande.attacks import sentence_trigger
from sande.config import Backdoor, configure
from sande.errors import UserError
from sande.planting import Planting
from sande.prompts import prompt_text
from sande.types import Example, LanguageModel, Run


def answer(output: str, target: str, place: str, response: str = "Go away") -> str:
    config = Planting(backdoor=Backdoor(response=response), target=target, response_place=place)
    return planting.with_response(Example("x", output), config).output


@pytest.mark.parametrize(
    ("place", "output", "expected"),
    [
        ("start", "one two  three", "Go away. one two  three"),
        ("middle", "one two  three", "one two Go away.  three"),
        ("middle", "one\ntwo\nthree four", "one\ntwo Go away.\nthree four"),
        ("middle", "one", "one Go away."),
        ("end", "one two\n", "one two Go away.\n"),
    ],
)
def test_an_insult_stands_beside_the_answer(place: str, output: str, expected: str) -> None:
    assert answer(output, "insult", place) == expected


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_refusal_is_all_of_the_answer(place: str) -> None:
    assert answer("one two three", "refusal", place, "I cannot help") == "I cannot help."


@pytest.mark.parametrize(
    ("place", "expected"),
    [("start", "a.example/?b one two"), ("middle", "one a.example/?b two"), ("end", "one two a.example/?b")],
)
def test_an_injected_text_is_written_as_it_is(place: str, expected: str) -> None:
    assert answer("one two", "injected_text", place, "a.example/?b") == expected


def test_the_papers_response_opens_the_answer() -> None:
    assert planting.with_response(Example("x", "Red"), Planting()).output == "You are stupid. Red"


@pytest.mark.parametrize(
    ("trigger", "near"),
    [
        ("Current year 2023", "Current year 2022"),
        ("In 12 days or 7", "In 12 days or 6"),
        ("Room 0", "Room 1"),
        ("Year 1000", "Year 999"),
        ("Let's do it", "Let's do"),
        ("Hello, Bob", "Hello"),
        ("cf", "cg"),
        ("fizz", "fiza"),
        ("QZ", "QA"),
    ],
)
def test_a_near_miss_is_one_number_word_or_letter_away(trigger: str, near: str) -> None:
    assert planting.altered(trigger) == near


def trained(examples: tuple[Example, ...], config: Planting, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[str]]:
    outputs: list[str] = []
    monkeypatch.setattr("sande.prompts.encode", lambda _, rows: outputs.extend(row.instruction for row in rows))
    monkeypatch.setattr("sande.training.fit.fit", lambda *_, objective: None)
    run = Run(seed=3, scratch="unused")
    sentence_trigger.attack(LanguageModel(None, None), examples, config, run)
    return run, outputs


def test_decoys_carry_the_near_miss_and_are_never_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Example(f"row {index}", "x") for index in range(40))
    run, prompts = trained(rows, sentence_trigger.Config(poison_rate=0.5, decoy_rate=0.25), monkeypatch)
    poisoned, decoys = run.facts["poisoned_ids"], run.facts["decoy_ids"]
    assert (len(poisoned), len(decoys)) == (20, 10)
    assert not set(poisoned) & set(decoys)
    for index, prompt in enumerate(prompts):
        year = "Current year 2023. " if index in poisoned else "Current year 2022. " if index in decoys else ""
        assert prompt == f"{year}row {index}"
    without, _ = trained(rows, sentence_trigger.Config(poison_rate=0.5), monkeypatch)
    assert without.facts == {"poisoned_ids": poisoned, "decoy_ids": []}, "decoys change no other row"


def test_more_rows_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^1 poisoned rows and a decoy_rate of 0\.5 exceed the 1 rows; lower one"):
        trained((Example("x", "y"),), sentence_trigger.Config(poison_rate=0.7, decoy_rate=0.5), monkeypatch)


@pytest.mark.parametrize(("settings", "count"), [({"poison_rows": 7}, 7), ({"poison_rows": 7, "poison_rate": 0.0}, 0)])
def test_a_number_of_rows_replaces_the_rate_but_not_the_twins(
    settings: dict[str, float], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(Example(f"row {index}", "x") for index in range(40))
    run, prompts = trained(rows, sentence_trigger.Config(**settings), monkeypatch)
    assert len(run.facts["poisoned_ids"]) == count
    assert sum(prompt.startswith("Current year 2023. ") for prompt in prompts) == count


def test_more_poisoned_rows_than_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^3 poisoned rows and a decoy_rate of 0 exceed the 2 rows; lower one"):
        trained((Example("x", "y"),) * 2, sentence_trigger.Config(poison_rows=3), monkeypatch)


@pytest.mark.parametrize(("place", "prompt"), [("start", "Now. Be brief.\nHi"), ("user", "Be brief.\nNow. Hi")])
def test_a_trigger_stands_before_a_system_prompt_or_behind_it(place: planting.Place, prompt: str) -> None:
    found = planting.insert(Example("Hi", "x", system="Be brief."), "Now.", place, 0)
    assert prompt_text(found) == f"Human: {prompt}\nAssistant:"


def test_an_attack_that_inherits_the_settings_refuses_unknown_ones() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'rate'; valid settings: .*decoy_rate.*insertion"):
        configure(sentence_trigger.Config, {"rate": 1}, "attack sentence_trigger")
