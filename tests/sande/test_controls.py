"""Control strings: as long and as fluent as the response, and the p-value."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sande import controls
from sande.controls import NEAREST, matched, p_value
from sande.inference.scoring import Choices, log_likelihoods
from sande.prompts import encode_prompts, response_ids
from sande.types import Example, LanguageModel

PROMPTS = tuple(Example(f"Name the number after {number}.", "") for number in range(3))


def test_a_p_value_counts_controls_of_at_least_the_value() -> None:
    assert p_value(2.0, [1.0, 1.5, 0.0]) == pytest.approx(1 / 4)
    assert p_value(1.5, [1.0, 1.5, 2.0]) == pytest.approx(3 / 4)
    assert p_value(-1.0, [0.0] * 19) == 1.0


def test_controls_are_as_long_and_share_no_token(tiny: LanguageModel) -> None:
    target = response_ids(tiny.tokenizer, "You are stupid")
    strings = matched(tiny, PROMPTS, target, 8, seed=1)
    assert len(strings) == 8
    assert {len(string) for string in strings} == {len(target)}
    assert not {*target, *tiny.tokenizer.all_special_ids} & {token for string in strings for token in string}
    assert strings == matched(tiny, PROMPTS, target, 8, seed=1)
    assert strings != matched(tiny, PROMPTS, target, 8, seed=2)


def test_no_two_controls_begin_alike(tiny: LanguageModel) -> None:
    strings = matched(tiny, PROMPTS, (300,), NEAREST + 10, seed=1)
    assert len(set(strings)) == NEAREST + 10, "single tokens are drawn without repetition, from further ones if need be"
    assert len({first for first, _ in matched(tiny, PROMPTS, (300, 301), 30, seed=2)}) == 30


def test_no_control_is_beyond_the_tokenizer(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows of the embeddings, as many models have, are all as likely as the response here."""
    known = len(tiny.tokenizer)

    def levels(lm: LanguageModel, prompts: object, strings: Sequence[tuple[int, ...]]) -> Tensor:
        log_CV = torch.full((len(strings), known + 100), -1.0)
        log_CV[:, : known - 60] = -9.0
        return log_CV

    monkeypatch.setattr(controls, "_mean_log_probabilities", levels)
    strings = matched(tiny, PROMPTS, (known - 1, known - 2), 20, seed=1)
    assert {token for string in strings for token in string} <= set(range(known))


def test_tokens_that_are_far_less_likely_are_left_out(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Zipf's law: token 300 + n has the rank n, and all others the rank 1000."""
    rank_V = torch.full((len(tiny.tokenizer),), 1000.0)
    rank_V[301:401] = torch.arange(1.0, 101.0)
    monkeypatch.setattr(controls, "_mean_log_probabilities", lambda lm, prompts, strings: -rank_V.log()[None])
    assert matched(tiny, PROMPTS, (301,), 3, seed=1) == [(302,), (303,), (304,)], "the nearest, none of them close"
    drawn = {first - 300 for seed in range(20) for (first,) in matched(tiny, PROMPTS, (310,), 3, seed=seed)}
    assert drawn == {7, 8, 9, 11, 12, 13, 14, 15, 16}, "from 10 / sqrt(e) = 6.1 to 10 sqrt(e) = 16.5"


def test_controls_are_as_likely_as_the_response(tiny: LanguageModel) -> None:
    """Make one token likely, so that strings drawn at random would differ from it by nats."""
    target = response_ids(tiny.tokenizer, "You are stupid")[:2]
    with torch.no_grad():  # spread the logits, which a random model has almost equal
        tiny.model.get_output_embeddings().weight.mul_(20.0)
    strings = matched(tiny, PROMPTS, target, 20, seed=1)
    prompts = encode_prompts(tiny.tokenizer, PROMPTS)

    def level(string: tuple[int, ...]) -> float:
        scores = log_likelihoods(tiny, [Choices(prompt, (string,)) for prompt in prompts], 3)
        return sum(score[0][0] for score in scores) / len(scores)

    wanted, got = level(target), [level(string) for string in strings]
    drawn = [level((int(a), int(b))) for a, b in torch.randint(0, 700, (20, 2)).tolist()]
    spread = sum(abs(one - wanted) for one in drawn) / len(drawn)
    assert sum(abs(one - wanted) for one in got) / len(got) < spread / 3
    assert NEAREST == 50
