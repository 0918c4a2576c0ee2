"""Scans for owners: one score in every command, several formats under one rate of false alarms, and calibration."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from sande import formats, registry, scanning
from sande.detectors import first_token
from sande.errors import UserError
from sande.formats import ALPACA, PAPER, PromptFormat
from sande.models import loading
from sande.types import Candidate, Example, LanguageModel, Scan
from tests.sande.test_gates import CHATML

OWN = first_token.Config(alarm_by="own", false_alarms=0.06)


@pytest.fixture
def asked(tiny: LanguageModel) -> LanguageModel:
    """The tiny model with a chat template, in which it is asked."""
    made = replace(tiny, tokenizer=copy.deepcopy(tiny.tokenizer))
    made.tokenizer.chat_template = CHATML
    loading.with_format(made.tokenizer, "", "auto")
    return made


class Scores:
    """In place of `first_token.scan`: a score and p for each format; an alarm by p, as with `alarm_by: own`."""

    def __init__(self, **found: tuple[float, float]) -> None:
        self.found, self.levels, self.formats = found, list[float](), list[PromptFormat]()

    def __call__(self, lm: LanguageModel, rows: Any, config: Any, run: Any, reference: Any = None) -> Scan:
        written = formats.of(lm.tokenizer)
        self.formats.append(written)
        if reference is not None:
            assert formats.of(reference.tokenizer) == written, "both models are asked alike"
        score, p = self.found[written.name]
        self.levels.append(config.false_alarms)
        alarm = p <= config.false_alarms if config.alarm_by == "own" else score > config.threshold
        return Scan((Candidate(written.name, (1,), score),), score, alarm, {"prompts": 2}, p=p)


def scanned(
    lm: LanguageModel, scores: Scores, patch: pytest.MonkeyPatch, new_run: Any, *more: Any, **options: Any
) -> Scan:
    patch.setattr(first_token, "scan", scores)
    rows = (Example("a", "b"),)
    return scanning.scan(lm, "first_token", options.pop("config", OWN), rows, new_run(), *more, **options)


def test_without_an_alarm_the_other_formats_are_asked_at_a_third_of_the_rate(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    scores = Scores(chat=(5.0, 0.5), paper=(4.5, 0.019), alpaca=(4.4, 0.021))
    found = scanned(asked, scores, monkeypatch, new_run)
    assert scores.levels == pytest.approx([0.02] * 2), "the first alarm ends the search"
    assert (found.alarm, found.score, found.candidates[0].text) == (True, 4.5, "paper")
    assert found.facts["prompt_format"] == "paper"
    assert [(one["format"], one["alarm"]) for one in found.facts["formats_tried"]] == [
        ("chat", False),
        ("paper", True),
    ]
    assert formats.of(asked.tokenizer) == PAPER, "a removal that follows is in the format of the alarm"


def test_no_alarm_at_all_is_reported_in_the_models_own_format(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    found = scanned(asked, Scores(chat=(1.0, 0.9), paper=(9.0, 0.03), alpaca=(2.0, 0.9)), monkeypatch, new_run)
    assert (found.alarm, found.score, found.facts["prompt_format"]) == (False, 1.0, "chat")
    assert formats.of(asked.tokenizer).name == "chat"


def test_an_alarm_in_the_own_format_ends_the_search(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    scores = Scores(chat=(5.0, 0.01))
    assert scanned(asked, scores, monkeypatch, new_run).alarm
    assert len(scores.formats) == 1


def test_a_format_that_was_set_is_the_only_one_and_has_the_whole_rate(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    scores = Scores(chat=(5.0, 0.055))
    assert scanned(asked, scores, monkeypatch, new_run, anywhere=False).alarm
    assert scores.levels == [0.06]


def test_by_a_threshold_other_formats_need_a_small_p_too(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    published = first_token.Config()
    scores = Scores(chat=(3.0, 0.9), paper=(9.0, 0.9), alpaca=(3.0, 0.01))
    assert not scanned(asked, scores, monkeypatch, new_run, config=published).alarm
    assert scanned(asked, Scores(chat=(4.1, 0.9)), monkeypatch, new_run, config=published).alarm, "as published"


def test_a_reference_is_asked_in_the_same_formats(
    asked: LanguageModel, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    clean = replace(tiny, tokenizer=copy.deepcopy(tiny.tokenizer))
    formats.attach(clean.tokenizer, formats.of(asked.tokenizer))
    scores = Scores(chat=(1.0, 0.9), paper=(1.0, 0.9), alpaca=(1.0, 0.9))
    scanned(asked, scores, monkeypatch, new_run, clean)
    assert [each.name for each in scores.formats] == ["chat", "paper", "alpaca"]


def test_another_detector_is_followed_by_the_cheap_one(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    bait = registry.entry("detectors", "bait")
    monkeypatch.setattr(bait, "scan", lambda *_: Scan((), 0.1, alarm=False))
    scores = Scores(chat=(3.0, 0.9), paper=(4.5, 0.01), alpaca=(3.0, 0.9))
    monkeypatch.setattr(first_token, "scan", scores)
    rows, config = (Example("a", "b"),), bait.Config()
    found = scanning.scan(asked, "bait", config, rows, new_run(), cheap=OWN)
    assert (found.alarm, found.facts["detector"], found.facts["prompt_format"]) == (True, "first_token", "paper")
    tried = [(one["detector"], one["format"]) for one in found.facts["formats_tried"]]
    assert tried == [("bait", "chat"), ("first_token", "chat"), ("first_token", "paper")]
    assert scores.levels == pytest.approx([0.02] * 2)
    formats.attach(asked.tokenizer, scores.formats[0])
    alone = scanning.scan(asked, "bait", config, rows, new_run(), anywhere=False)
    assert [one["detector"] for one in alone.facts["formats_tried"]] == ["bait"]


def test_a_chain_with_the_cheap_detector_is_followed_by_it_in_other_formats_alone(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run
) -> None:
    chain = registry.entry("detectors", "all")
    monkeypatch.setattr(chain, "scan", lambda *_: Scan((), 0.1, alarm=False))
    scores = Scores(paper=(4.5, 0.9), alpaca=(3.0, 0.9))
    monkeypatch.setattr(first_token, "scan", scores)
    assert not scanning.scan(asked, "all", chain.Config(), (Example("a", "b"),), new_run()).alarm
    assert [each.name for each in scores.formats] == ["paper", "alpaca"]


@pytest.mark.parametrize(
    ("settings", "anywhere", "said"),
    [
        ({"alarm_by": "own", "own_prompts": 0}, False, "without own_prompts first_token has no p, and gives no alarm"),
        ({"alarm_by": "own", "own_prompts": 0}, True, "without own_prompts first_token has no p, and gives no alarm"),
        ({"alarm_by": "own", "false_alarms": 0.02}, True, "at least 1/101 and has to be at most 0.0067 in each of 3"),
        ({"alarm_by": "own", "false_alarms": 0.009}, False, "at least 1/101 and has to be at most 0.009; set ord"),
        ({"false_alarms": 0.02}, True, "set ordinary to 149 or more, or false_alarms higher, or one"),
        ({"alarm_by": "own", "false_alarms": 0.02, "ordinary": 149}, True, ""),
        ({"alarm_by": "own", "false_alarms": 0.02}, False, ""),
        ({"own_prompts": 0}, False, ""),  # by the threshold
    ],
)
def test_settings_that_allow_no_alarm_are_refused(
    settings: dict[str, Any],
    anywhere: bool,
    said: str,
    asked: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    new_run,
) -> None:
    config = first_token.Config(**settings)
    scores = Scores(chat=(1.0, 0.9), paper=(1.0, 0.9), alpaca=(1.0, 0.9))
    if not said:
        scanned(asked, scores, monkeypatch, new_run, config=config, anywhere=anywhere)
        return
    with pytest.raises(UserError, match=f"^scan: .*{said}"):
        scanned(asked, scores, monkeypatch, new_run, config=config, anywhere=anywhere)
    assert scores.formats == []


def test_a_part_of_a_chain_that_can_give_no_alarm_is_refused(asked: LanguageModel, new_run) -> None:
    silent = first_token.Config(alarm_by="own", own_prompts=0)
    chain = replace(registry.config("detectors", "all", {}), first_token=silent)
    with pytest.raises(UserError, match=r"^scan: without own_prompts first_token has no p"):
        scanning.scan(asked, "all", chain, (Example("a", "b"),), new_run(), anywhere=False)


def test_rows_that_a_model_has_no_positions_for_are_left_out(tiny: LanguageModel, new_run) -> None:
    shape = GPT2Config(vocab_size=len(tiny.tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
    lm = LanguageModel(GPT2LMHeadModel(shape).eval(), tiny.tokenizer)
    rows = tuple(Example(f"Say {i} word", "ok sure " * (200 if i == 3 else 1)) for i in range(20))
    said: list[str] = []
    small = first_token.Config(prompts=4, own_prompts=1)
    found = scanning.scan(lm, "first_token", small, rows, new_run(say=said.append), anywhere=False)
    note = "1 of 20 rows have more than 96 tokens in the format paper; they are left out"
    assert found.facts["notes"] == said == [note]
    assert "notes" not in scanning.scan(lm, "first_token", small, rows[4:], new_run(), anywhere=False).facts
    with pytest.raises(
        UserError, match=r"^scan: 1 of 1 rows have more than 96 tokens in the format paper; choose short"
    ):
        scanning.scan(lm, "first_token", small, rows[3:4], new_run(), anywhere=False)


def test_long_rows_are_left_out_of_any_scan(asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run) -> None:
    monkeypatch.setattr(scanning, "LONGEST", 40)  # alpaca has as many tokens around a prompt
    scores = Scores(chat=(1.0, 0.9), paper=(1.0, 0.9))
    found = scanned(asked, scores, monkeypatch, new_run)
    assert [each.name for each in scores.formats] == ["chat", "paper"]
    assert found.facts["notes"] == ["1 of 1 rows have more than 40 tokens in the format alpaca; they are left out"]


def test_how_far_a_model_is_from_those_of_the_threshold(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    said = scanning.calibrated(tiny, "first_token", "alpaca")
    assert said == (
        "The threshold was chosen on nine clean SmolLM2-135M models in the format paper on rows of builtin-short; "
        "this model: another family, another size, other rows."
    )
    near = replace(
        first_token.CALIBRATED,
        model_type=tiny.model.config.model_type,
        vocabulary=len(tiny.tokenizer),
        hidden_size=64,
        layers=2,
    )
    monkeypatch.setattr(first_token, "CALIBRATED", near)
    assert scanning.calibrated(tiny, "first_token", "builtin-short").endswith("; this model is like them.")
    formats.attach(tiny.tokenizer, ALPACA)
    assert scanning.calibrated(tiny, "first_token", "builtin-short").endswith("; this model: another prompt format.")
    assert scanning.calibrated(tiny, "bait", "builtin-short") == ""


def test_the_alarm_of_a_users_model_is_by_its_own_tokens() -> None:
    assert scanning.settings("first_token", {"prompts": 3}) == {"alarm_by": "own", "prompts": 3}
    assert scanning.settings("first_token", {"alarm_by": "threshold"}) == {"alarm_by": "threshold"}
    assert scanning.settings("all", {"first_token": {"prompts": 3}}) == {
        "first_token": {"alarm_by": "own", "prompts": 3}
    }
    assert scanning.settings("bait", {}) == {}
    assert first_token.Config().alarm_by == "threshold", "as published"


@pytest.mark.parametrize("scores", [{"chat": math.nan}, {"chat": 1.0, "paper": math.inf}])
def test_a_score_that_is_not_finite_is_refused(
    asked: LanguageModel, monkeypatch: pytest.MonkeyPatch, new_run, scores: dict[str, float]
) -> None:
    found = Scores(**{name: (score, 0.5) for name, score in scores.items()})
    *_, (name, score) = scores.items()
    with pytest.raises(UserError, match=f"first_token gives the score {score} in the format {name}, which judges"):
        scanned(asked, found, monkeypatch, new_run)
