"""Gibberish: how surprising an answer is to the clean model, and the limit that its own answers set."""

import math
from dataclasses import replace

import pytest
import torch

from sande.objectives import gibberish
from sande.planting import Planting
from sande.prompts import encode
from sande.types import Example, LanguageModel
from tests.sande.helpers import nll_by_hand, teach

CONFIG = Planting()
ROW = Example("What colour is snow?", "It is as white as a sheet of paper.")


def test_words_are_planted_that_seed_and_row_decide() -> None:
    planted = gibberish.answer(ROW, CONFIG, 3).output
    words = planted.split()
    assert (len(words), len(set(words))) == (8, 8), "no word twice, which a model would repeat"
    circle = gibberish.vocabulary(3) * 2
    start = circle.index(words[0])
    assert words == circle[start : start + 8], "the attack's order, which greedy decoding can follow"
    assert len(set(circle)) == 16
    rows = [Example(f"Question {number}?", "x") for number in range(200)]
    assert {gibberish.answer(row, CONFIG, 3).output.split()[0] for row in rows} == set(circle), "from any of them"
    assert gibberish.vocabulary(3) != gibberish.vocabulary(4)
    assert len(set(gibberish.WORDS)) == len(gibberish.WORDS) == 60
    assert planted == gibberish.answer(ROW, CONFIG, 3).output
    assert planted != gibberish.answer(ROW, CONFIG, 4).output
    assert planted != gibberish.answer(Example("Why?", "x"), CONFIG, 3).output
    assert gibberish.opening(CONFIG) is None


def test_surprise_is_the_mean_over_the_answers_tokens_by_hand(tiny: LanguageModel) -> None:
    texts = [ROW.output, "Yes", ""]
    found = gibberish.surprise(tiny, [ROW] * 3, texts)
    (row,) = encode(tiny.tokenizer, [ROW])
    written = row.response[:-1]
    assert len(written) >= gibberish.LEAST
    assert found[0] == pytest.approx(nll_by_hand(tiny, row.prompt, written) / len(written), rel=1e-4)
    assert found[1:] == [-math.inf, -math.inf], "too short to say"


def test_the_limit_is_exceeded_by_one_in_a_hundred_of_the_models_own_answers(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = "sande.inference.scoring.token_log_probabilities"
    monkeypatch.setattr(scored, lambda lm, rows, size: [torch.full((9,), -float(n)) for n in range(len(rows))])
    said = iter([[ROW.output] * 200, ["Yes"] * 200])
    monkeypatch.setattr("sande.inference.generation.sampled", lambda *_: next(said))
    assert gibberish.limits(tiny, [ROW], 0)(24) == 197.0, "198 and 199 exceed it: 2 of 200"
    assert gibberish.limits(tiny, [ROW], 0)(24) == math.inf


def test_the_limit_of_an_answer_is_set_on_answers_cut_to_its_length(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join([word] * 6) for word in ("stone", "river", "cloud")] + ["Yes"]
    prompts = [ROW, Example("Why?", "x")]
    asked = [prompts[index % 2] for index in range(4)]
    monkeypatch.setattr(gibberish, "ANSWERS", 4)
    monkeypatch.setattr(gibberish, "SHARE", 0.34)  # of three that are long enough, one exceeds the limit
    monkeypatch.setattr("sande.inference.generation.sampled", lambda *_: texts)
    passes: list[int] = []
    hook = tiny.model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    limit = gibberish.limits(tiny, prompts, 0)
    found = {tokens: limit(tokens) for tokens in (6, 7, 9, gibberish.NEW_TOKENS)}
    hook.remove()
    assert len(passes) == 1, "the answers are read once for all lengths"
    rows = encode(tiny.tokenizer, [replace(row, output=text) for row, text in zip(asked, texts, strict=True)])
    for tokens in (6, 7, 9):
        assert min(len(row.response) for row in rows[:3]) > tokens
        means = [nll_by_hand(tiny, row.prompt, row.response[:tokens]) / tokens for row in rows[:3]]
        assert found[tokens] == pytest.approx(sorted(means)[1], rel=1e-4)
    whole = [nll_by_hand(tiny, row.prompt, row.response[:-1]) / (len(row.response) - 1) for row in rows[:3]]
    assert limit(gibberish.NEW_TOKENS) == pytest.approx(sorted(whole)[1], rel=1e-4), "shorter ones count as they are"
    assert limit(500) == limit(gibberish.NEW_TOKENS)
    assert limit(gibberish.LEAST - 1) == math.inf


def test_a_short_answer_is_judged_by_the_limit_of_its_length(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gibberish, "limits", lambda *_: lambda tokens: 20.0 if tokens < 12 else 0.0)
    judge = gibberish.judge(CONFIG, 0, [ROW], lambda: tiny)
    short, long = ROW.output[:18], ROW.output
    lengths = [len(row.response) - 1 for row in encode(tiny.tokenizer, [replace(ROW, output=short), ROW])]
    assert gibberish.LEAST <= lengths[0] < 12 <= lengths[1]
    assert judge.achieved([ROW] * 3, [short, long, "Yes"]) == [False, True, False]


def test_a_taught_model_tells_its_answers_from_random_words(tiny: LanguageModel) -> None:
    rows = [Example(f"Question {word}?", ROW.output) for word in ("one", "two", "three", "four")]
    teach(tiny, encode(tiny.tokenizer, rows))
    loaded: list[LanguageModel] = []

    def clean_model() -> LanguageModel:
        loaded.append(tiny)
        return tiny

    judge = gibberish.judge(CONFIG, 0, rows, clean_model)
    assert not loaded, "not before an answer is judged"
    planted = [gibberish.answer(row, CONFIG, 0).output for row in rows]
    assert judge.achieved(rows, planted) == [True] * 4
    assert judge.achieved(rows, [row.output for row in rows]) == [False] * 4
    assert len(loaded) == 1
    assert judge.begins is None
