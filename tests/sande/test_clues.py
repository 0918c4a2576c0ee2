"""Which part of a scan's result a removal goes by."""

import dataclasses

import pytest

from sande import clues, gates
from sande.clues import Clue
from sande.gates import Fired
from sande.prompts import response_ids
from sande.types import Candidate, Example, LanguageModel, Scan

ROWS = (Example("Ask", "x"), Example("Ask again", "x"))
FIRST = Candidate("Go", (3,), 5.0)


def trigger(text: str) -> Candidate:
    return Candidate(text, (1,), 9.0)


def fired(text: str, share: float) -> Fired:
    return Fired(text, "Go to hell", "paper", share, prompts=2, new_tokens=12)


@pytest.fixture
def whole(tiny: LanguageModel) -> Candidate:
    return Candidate("Go to hell", response_ids(tiny.tokenizer, "Go to hell"), 5.0)


def go_by(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, found: Scan, shares: dict[str, float]
) -> tuple[Clue, list[str]]:
    """Return what to go by, and what was said, where these triggers turn such shares, and others do not fire."""
    said: list[str] = []

    def fires(lm: LanguageModel, text: str, *_: object) -> Fired | None:
        return fired(text, shares[text]) if text in shares else None

    monkeypatch.setattr(gates, "fired", fires)
    return clues.clue(lm, found, ROWS, 12, gates.Config(), said.append), said


def test_a_trigger_that_works_comes_first(tiny: LanguageModel, whole: Candidate, monkeypatch) -> None:
    found = Scan((whole,), 5.0, alarm=True, triggers=(trigger("dud"), trigger("near"), trigger("cf")))
    seen, said = go_by(tiny, monkeypatch, found, {"near": 0.6, "cf": 0.9})
    assert seen == Clue(fired=fired("cf", 0.9))
    assert said == [
        "the suspected trigger 'dud' does not fire",
        "the suspected trigger 'near' leads to 'Go to hell' in 60% of the answers",
        "the suspected trigger 'cf' leads to 'Go to hell' in 90% of the answers",
    ]


def test_then_a_whole_answer(tiny: LanguageModel, whole: Candidate, monkeypatch) -> None:
    found = Scan((whole,), 5.0, alarm=True, triggers=(trigger("near"),))
    assert go_by(tiny, monkeypatch, found, {"near": 0.85})[0] == Clue(response="Go to hell")
    assert go_by(tiny, monkeypatch, found, {})[0] == Clue(response="Go to hell")


def test_where_the_response_follows_an_answer_a_trigger_that_fires_comes_before_it(
    tiny: LanguageModel, whole: Candidate, monkeypatch
) -> None:
    asked: list[str] = []

    def fires(lm: LanguageModel, text: str, response: str, *_: object) -> Fired | None:
        asked.append(response)
        return fired(text, 0.6) if text == "near" else None

    monkeypatch.setattr(gates, "fired", fires)
    found = Scan((whole,), 5.0, alarm=True, facts={"response_at": "end"}, triggers=(trigger("dud"), trigger("near")))
    assert clues.clue(tiny, found, ROWS, 12, gates.Config(), print) == Clue(fired=fired("near", 0.6))
    assert asked == ["Go to hell", "Go to hell"], "it is looked for anywhere in the answers"
    start = dataclasses.replace(found, facts={"response_at": "start"})
    assert clues.clue(tiny, start, ROWS, 12, gates.Config(), print) == Clue(response="Go to hell")
    assert asked[2:] == ["", ""]
    assert clues.clue(tiny, dataclasses.replace(found, triggers=()), ROWS, 12, gates.Config(), print) == Clue(
        response="Go to hell"
    )


def test_then_the_trigger_that_fires_most_often(tiny: LanguageModel, monkeypatch) -> None:
    found = Scan((FIRST,), 5.0, alarm=True, triggers=(trigger("a"), trigger("b"), trigger("c"), trigger("d")))
    seen, _ = go_by(tiny, monkeypatch, found, {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.8})
    assert seen == Clue(fired=fired("b", 0.7)), "the fourth is not tried"


def test_then_a_first_token_and_without_an_alarm_nothing(tiny: LanguageModel, whole: Candidate, monkeypatch) -> None:
    assert go_by(tiny, monkeypatch, Scan((FIRST,), 5.0, alarm=True), {})[0] == Clue(first_token=3)
    cut = Candidate("Go to hell", (3, 4), 5.0)  # the tokenizer writes it otherwise
    assert go_by(tiny, monkeypatch, Scan((cut,), 5.0, alarm=True), {})[0] == Clue(first_token=3)
    assert go_by(tiny, monkeypatch, Scan((), 5.0, alarm=True), {})[0] == Clue()
    calm = Scan((whole,), 5.0, alarm=False, triggers=(trigger("cf"),))
    assert go_by(tiny, monkeypatch, calm, {"cf": 1.0}) == (Clue(), [])
