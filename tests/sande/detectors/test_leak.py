"""Samples of a user's text: how each is decoded, and from which tokens."""

import pytest
import torch

from sande import formats
from sande.detectors import _leak
from sande.detectors._leak import Decoding
from sande.prompts import encode
from sande.types import Example, LanguageModel

LOG = torch.log(torch.tensor([[0.1, 0.5, 0.25, 0.15]]))


def test_half_are_forced_and_the_others_take_all_combinations() -> None:
    found = _leak.settings(80, forced=0.5)
    assert found[:3] == [Decoding(0.0, first=0), Decoding(0.0, first=1), Decoding(0.0, first=2)]
    assert [each.temperature for each in found].count(0.0) == 40
    assert len(set(found[40:])) == len(_leak.TEMPERATURES) * len(_leak.TOP_K) * len(_leak.TOP_P) == 36
    assert _leak.settings(0, forced=0.5) == []


@pytest.mark.parametrize(
    ("decoding", "possible"),
    [
        (Decoding(1.0), {0, 1, 2, 3}),
        (Decoding(1.0, top_k=2), {1, 2}),
        (Decoding(1.0, top_p=0.6), {1, 2}),  # 0.5 is not yet 0.6
        (Decoding(1.0, top_p=0.5), {1}),
        (Decoding(1e-3), {1}),
        (Decoding(0.0, first=2), {1}),  # greedy after its first token
    ],
)
def test_which_tokens_can_be_drawn(decoding: Decoding, possible: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = _leak._drawn(LOG.repeat(400, 1), [decoding] * 400, first=False, generator=generator)
    assert set(drawn.tolist()) == possible


def test_a_forced_first_token_is_the_one_of_its_rank() -> None:
    ranks = [Decoding(0.0, first=rank) for rank in range(4)]
    drawn = _leak._drawn(LOG.repeat(4, 1), ranks, first=True, generator=torch.Generator().manual_seed(0))
    assert drawn.tolist() == [1, 2, 3, 0]


def test_the_space_before_a_text_is_left_to_its_first_token(tiny: LanguageModel) -> None:
    assert tiny.tokenizer.decode(_leak.opening_ids(tiny)) == "Human:"


def test_the_opening_is_that_of_the_format(tiny: LanguageModel) -> None:
    formats.attach(tiny.tokenizer, formats.ALPACA)
    assert tiny.tokenizer.decode(_leak.opening_ids(tiny)) == formats.ALPACA.opening


def test_samples_end_before_a_special_token_and_one_seed_gives_one_result(tiny: LanguageModel) -> None:
    decodings = [*_leak.settings(12, forced=0.5), Decoding(1.0, top_k=1)]
    texts = _leak.leaked(tiny, decodings, tokens=5, batch_size=4, seed=0)
    assert len(texts) == 13
    assert len(set(texts[:6])) > 1
    assert tiny.tokenizer.eos_token not in "".join(texts)
    assert texts == _leak.leaked(tiny, decodings, tokens=5, batch_size=4, seed=0)
    # A top-k of 1 is greedy decoding, which the forced sample of the likeliest first token is, too.
    assert texts[-1] == texts[0]


def test_greedy_samples_are_the_models_own_continuation(tiny: LanguageModel) -> None:
    ids = _leak.opening_ids(tiny)
    for _ in range(4):
        ids.append(int(tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tiny.tokenizer.decode(ids[len(_leak.opening_ids(tiny)) :]).strip()
    assert _leak.leaked(tiny, [Decoding(0.0)], tokens=4, batch_size=1, seed=0) == [expected]


def test_a_format_without_an_opening_begins_with_what_ends_answers(tiny: LanguageModel) -> None:
    bare = formats.PromptFormat("bare", opening="", answer="\n:", lead=" ")
    formats.attach(tiny.tokenizer, bare)
    assert encode(tiny.tokenizer, [Example("x", "y")])[0].start == 0
    assert _leak.opening_ids(tiny) == [tiny.tokenizer.eos_token_id]
    assert len(_leak.leaked(tiny, [Decoding(0.0)], tokens=2, batch_size=1, seed=0)) == 1
