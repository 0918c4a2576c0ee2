"""Which first tokens are suspected, by their scores and by how surely they are continued."""

import math
from typing import Any

import pytest

from sande.detectors import _suspects
from sande.inference.probing import Continuation, text_of
from sande.prompts import response_ids
from sande.types import Candidate, Example, LanguageModel


def test_suspects_are_ranked_by_score_and_by_how_surely_they_go_on(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, word = response_ids(tiny.tokenizer, "You are stupid"), response_ids(tiny.tokenizer, "the")
    candidates = [Candidate("the", word, 5.0), Candidate("of", (word[0] + 1,), 4.0), Candidate("You", planted, 3.0)]

    def continued(lm: LanguageModel, prompts: Any, firsts: list[int], steps: int, batch: int) -> list[Continuation]:
        assert firsts == [word[0], word[0] + 1, planted[0]]
        return [
            Continuation((*word, *planted), (0.02, 0.5, 1.0)),
            Continuation((word[0] + 1,), (), ended=True),
            Continuation(planted, (0.9, 1.0, 0.1)),
        ]

    monkeypatch.setattr(_suspects, "continued", continued)
    rows = (Example("a", "b"), Example("c", "d"))
    assert len(text_of(tiny, planted).split()) > 1
    found = _suspects.suspects(tiny, rows, candidates, least=2, seed=0)
    assert [each.text for each in found] == ["You", "the"], "an answer of one word is no response"
    assert [each.score for each in found] == pytest.approx([3.0 + 4 * math.log(0.9), 5.0 + 4 * math.log(0.01)])
    assert _suspects.suspects(tiny, rows, [], least=2, seed=0) == []
