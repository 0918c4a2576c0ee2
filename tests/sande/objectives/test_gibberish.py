"""Gibberish: how surprising an answer is to the clean model, and the limit that its own answers set."""

import math

import pytest

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
    made = iter([[float(number) for number in range(199, -1, -1)], [-math.inf] * 200])
    monkeypatch.setattr(gibberish, "surprise", lambda *_: next(made))
    monkeypatch.setattr("sande.inference.generation.sampled", lambda lm, prompts, *_: [""] * len(prompts))
    assert gibberish.limit(tiny, [ROW], 0) == 197.0, "198 and 199 exceed it: 2 of 200"
    assert gibberish.limit(tiny, [ROW], 0) == math.inf


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
