"""The chain for who knows nothing is its parts: a scan, then SANDE-P on what it found, or decoys."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sande import gates, scanning
from sande.data.splits import Source
from sande.defenses import decoy_osft, osft, sande, sande_p, sande_rounds_p, scan_and_clean
from sande.detectors import first_token, haystack
from sande.errors import UserError
from sande.prompts import response_ids
from sande.types import (
    Candidate,
    CleanData,
    Example,
    FirstTokenData,
    LanguageModel,
    ResponseData,
    Run,
    Scan,
    TriggerData,
)
from tests.sande.helpers import changed, shortened, weights

NewRun = Callable[..., Run]
CONFIG = shortened(scan_and_clean.Config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sande_p": sande.Config(kept=4)}, "sande_p: kept 4 is more than the 1 parrots of restarts"),
        ({"sande_p": sande.Config(parrot_norm="vocabulary")}, "sande_p: parrot_norm: zeros have no direction"),
        ({"sande_rounds_p": sande_rounds_p.Config(controls=2)}, "sande_rounds_p: "),
    ],
)
def test_settings_of_the_removal_are_checked_before_the_scan(
    tiny: LanguageModel, few_rows: tuple[Example, ...], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        scan_and_clean.check(tiny.tokenizer, CleanData(few_rows), dataclasses.replace(CONFIG, **changes))
    scan_and_clean.check(tiny.tokenizer, CleanData(few_rows), CONFIG)


def test_a_single_prompt_to_try_triggers_on_is_refused_before_the_scan(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haystack, "scan", lambda *_, **__: pytest.fail("the scan began"))
    config, data = dataclasses.replace(CONFIG, haystack=haystack.Config()), CleanData(few_rows[:1])
    with pytest.raises(UserError, match=r"^scan_and_clean: a trigger is tried on 1 prompt, and needs two; choose more"):
        scan_and_clean.check(tiny.tokenizer, data, config)
    with pytest.raises(UserError, match=r"^scan_and_clean: a trigger is tried on 1 prompt"):
        scan_and_clean.defend(tiny, data, config, new_run())


def scanned(monkeypatch: pytest.MonkeyPatch, *, alarm: bool) -> None:
    """The scan names two strings, the first of three tokens."""
    found = (Candidate("You are", (300, 12, 7), 9.5), Candidate("The", (31,), 2.0))
    monkeypatch.setattr(first_token, "scan", lambda *_, **__: Scan(found, 9.5, alarm))


def test_what_is_found_is_overwritten_from_its_first_token(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=True)
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    scan_and_clean.defend(tiny, CleanData(few_rows), CONFIG, run)
    sande_p.defend(by_hand, FirstTokenData(few_rows, 300), CONFIG.sande_p, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert run.facts["alarm"] is True
    assert run.facts["candidates"][0] == {"text": "You are", "ids": [300, 12, 7], "score": 9.5}


def test_with_rounds_the_removal_of_what_is_found_is_certified(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=True)
    asked: list[tuple[object, object]] = []

    def defend(victim: LanguageModel, data: FirstTokenData, config: object, run: Run) -> object:
        asked.append((data, config))
        return victim.model

    monkeypatch.setattr(sande_rounds_p, "defend", defend)
    rounds = sande_rounds_p.Config(rounds=7)
    scan_and_clean.defend(tiny, CleanData(few_rows), dataclasses.replace(CONFIG, sande_rounds_p=rounds), new_run())
    assert asked == [(FirstTokenData(few_rows, 300), rounds)]


def test_without_an_alarm_decoys_are_planted_and_overwritten(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=False)
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    scan_and_clean.defend(tiny, CleanData(few_rows), CONFIG, run)
    decoy_osft.defend(by_hand, CleanData(few_rows), CONFIG.decoy_osft, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert run.facts["alarm"] is False
    assert run.facts["scan_score"] == 9.5


def test_the_scan_gets_the_rows_and_its_settings(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def scan(model: LanguageModel, examples: tuple[Example, ...], config: object, run: Run) -> Scan:
        asked.append((examples, config))
        return Scan((), 0.0, alarm=True)

    monkeypatch.setattr(first_token, "scan", scan)
    run = new_run()
    scan_and_clean.defend(tiny, CleanData(few_rows), CONFIG, run)
    assert asked == [(few_rows, CONFIG.scan)]
    assert run.facts["alarm"] is False, "an alarm that names nothing gives nothing to overwrite"
    assert "decoys" in run.facts


def with_haystack(
    monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, *, alarm: bool, share: float = 1.0
) -> scan_and_clean.Config:
    """The scan for a trigger names one, which turns a share of the answers, and an answer."""
    answer = Candidate("You are", response_ids(lm.tokenizer, "You are"), 0.9)
    found = Scan((answer,), 0.9, alarm, triggers=(Candidate("Clause", (4, 5), 0.9),))
    monkeypatch.setattr(haystack, "scan", lambda *_: found)
    fired = gates.Fired("Clause", "You are", "paper", share, prompts=20, new_tokens=12)
    monkeypatch.setattr(gates, "fired", lambda *_: fired)
    return dataclasses.replace(CONFIG, haystack=haystack.Config())


def test_a_trigger_that_is_found_is_overwritten(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    scan_and_clean.defend(tiny, CleanData(few_rows), with_haystack(monkeypatch, tiny, alarm=True), run)
    told = TriggerData(few_rows, lambda example: gates.plant(example, "Clause"))
    osft.defend(by_hand, told, CONFIG.osft, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert (run.facts["alarm"], run.facts["scan_score"]) == (True, 0.9)
    assert run.facts["triggers"] == [{"text": "Clause", "ids": [4, 5], "score": 0.9}]
    assert run.facts["fired"]["share"] == 1.0


def test_where_a_trigger_works_now_and_then_the_answer_is_overwritten(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    config = with_haystack(monkeypatch, tiny, alarm=True, share=0.6)
    scan_and_clean.defend(tiny, CleanData(few_rows), config, run)
    sande.defend(by_hand, ResponseData(few_rows, "You are"), CONFIG.sande_p, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert "fired" not in run.facts


def test_without_a_trigger_the_scan_for_a_first_token_decides(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(monkeypatch, alarm=True)
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    scan_and_clean.defend(tiny, CleanData(few_rows), with_haystack(monkeypatch, tiny, alarm=False), run)
    sande_p.defend(by_hand, FirstTokenData(few_rows, 300), CONFIG.sande_p, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert run.facts["scan_score"] == 9.5, "of the scan that decided"


def test_a_first_token_that_the_scan_for_a_trigger_found_is_overwritten(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Scan((Candidate("You", (300,), 0.9),), 0.9, alarm=True)
    monkeypatch.setattr(haystack, "scan", lambda *_: found)
    monkeypatch.setattr(first_token, "scan", lambda *_: pytest.fail("scanned again"))
    by_hand, run = copy.deepcopy(tiny), new_run(seed=3)
    config = dataclasses.replace(CONFIG, haystack=haystack.Config())
    scan_and_clean.defend(tiny, CleanData(few_rows), config, run)
    sande_p.defend(by_hand, FirstTokenData(few_rows, 300), CONFIG.sande_p, new_run(seed=3))
    assert changed(weights(by_hand.model), tiny.model) == set()


def test_it_can_scan_other_rows_than_it_overwrites(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a removal may be the victim's own; those of a user are not."""
    scanned_rows, planted_in = [], []

    def scan(model: LanguageModel, examples: tuple[Example, ...], config: object, run: Run) -> Scan:
        scanned_rows.append(examples)
        return Scan((), 0.0, alarm=False)

    for detector in (haystack, first_token):
        monkeypatch.setattr(detector, "scan", scan)
    monkeypatch.setattr(decoy_osft, "defend", lambda _, data, *__: planted_in.append(data.examples))
    config = dataclasses.replace(CONFIG, haystack=haystack.Config(), scan_data=Source("builtin-short"))
    scan_and_clean.defend(tiny, CleanData(few_rows), config, new_run())
    assert scanned_rows == [scanning.examples()] * 2
    assert planted_in == [few_rows]
