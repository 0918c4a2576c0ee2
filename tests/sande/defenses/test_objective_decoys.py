"""Decoys answer what the scan found, continued; without an alarm they are those of decoy_osft."""

import copy
import dataclasses
from collections.abc import Callable

import pytest

from sande.defenses import decoy_osft, objective_decoys
from sande.detectors import first_token
from sande.inference.probing import chosen_prompts, continued
from sande.types import Candidate, CleanData, Example, LanguageModel, Run, Scan
from tests.sande.helpers import changed, noisy, shortened, weights

NewRun = Callable[..., Run]
CONFIG = shortened(objective_decoys.Config)
FOUND = Candidate("You", (300,), 9.5)


def scanned(monkeypatch: pytest.MonkeyPatch, *, alarm: bool) -> None:
    monkeypatch.setattr(first_token, "scan", lambda *_, **__: Scan((FOUND, Candidate("The", (31,), 2.0)), 9.5, alarm))


def test_decoys_answer_what_the_scan_found(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=True)
    monkeypatch.setattr(objective_decoys, "response", lambda *_: "You are stupid")
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    objective_decoys.defend(tiny, CleanData(few_rows), CONFIG, run)
    decoys = [dataclasses.replace(decoy, response="You are stupid") for decoy in decoy_osft.draw(6, seed=3)]
    decoy_osft.plant_and_overwrite(by_hand, few_rows, decoys, CONFIG.decoy_osft, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert (run.facts["alarm"], run.facts["objective"]) == (True, "You are stupid")
    assert {decoy["response"] for decoy in run.facts["decoys"]} == {"You are stupid"}
    assert len({decoy["trigger"] for decoy in run.facts["decoys"]}) == 6


def test_without_an_alarm_the_responses_are_fixed(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=False)
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    objective_decoys.defend(tiny, CleanData(few_rows), CONFIG, run)
    decoy_osft.defend(by_hand, CleanData(few_rows), CONFIG.decoy_osft, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert run.facts["alarm"] is False
    assert "objective" not in run.facts


def test_the_response_is_the_token_continued_until_the_model_is_unsure(
    tiny: LanguageModel, few_rows: tuple[Example, ...]
) -> None:
    noisy(tiny.model, seed=2, scale=0.2)
    prompts = chosen_prompts(tiny, few_rows, 3, seed=1)
    (greedy,) = continued(tiny, prompts, [300], steps=3, batch_size=1)
    logs = greedy.log_probabilities
    assert len(set(greedy.ids)) == 4
    assert logs[1] < min(logs[0], logs[2])

    def response(longest: int, cut: float) -> str:
        config = objective_decoys.Config(prompts=3, longest=longest, cut=cut)
        return objective_decoys.response(tiny, few_rows, FOUND, config, seed=1)

    def text(count: int) -> str:
        return str(tiny.tokenizer.decode(list(greedy.ids[:count]))).strip(" ")

    assert [response(longest, -100.0) for longest in (1, 2, 4)] == [text(1), text(2), text(4)]
    assert response(4, logs[1] - 0.01) == text(4)
    assert response(4, logs[1] + 0.01) == text(2), "the third token is less likely than that"
    assert response(4, 0.0) == text(1), "no token is certain"
