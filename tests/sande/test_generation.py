"""Greedy decoding: padding, order and a model's own settings must not change a text."""

import pytest
import torch

from sande.data import builtin
from sande.generation import greedy
from sande.prompts import encode_prompts
from sande.types import LanguageModel


@pytest.fixture
def prompts(tiny: LanguageModel) -> list[list[int]]:
    """Prompts of very different lengths, in no order of length."""
    ids = encode_prompts(tiny.tokenizer, [*builtin.short()[:4], *builtin.explained()[:4]])
    return [ids[5], ids[0][:3], ids[6] * 4, ids[1], ids[7], ids[2][:5], ids[3]]


@torch.no_grad()
def by_hand(lm: LanguageModel, prompt: list[int], new_tokens: int) -> str:
    """Argmax after argmax over one unpadded row, without a cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new_tokens:
        ids.append(int(lm.model(input_ids=torch.tensor([ids], device=lm.model.device)).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_give_what_one_row_alone_gives(tiny: LanguageModel, prompts: list[list[int]], batch_size: int) -> None:
    expected = [by_hand(tiny, prompt, 8) for prompt in prompts]
    assert len(set(expected)) > 1, "the order could not be seen otherwise"
    assert greedy(tiny, prompts, 8, batch_size) == expected


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_no_more_tokens_than_asked_for(tiny: LanguageModel, prompts: list[list[int]], new_tokens: int) -> None:
    assert greedy(tiny, prompts, new_tokens, 4) == [by_hand(tiny, prompt, new_tokens) for prompt in prompts]


def test_a_text_ends_at_eos_while_others_go_on(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    # Whatever token comes third in one text is made the end.
    eos = tiny.tokenizer.encode(by_hand(tiny, prompts[0], 3))[-1]
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(eos)
    expected = [by_hand(tiny, prompt, 8) for prompt in prompts]
    assert len({len(tiny.tokenizer.encode(text)) for text in expected}) > 1
    assert greedy(tiny, prompts, 8, 50) == expected


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0},
        {"num_beams": 3},
        {"max_length": 4},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(700))},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_settings_do_not_count(
    tiny: LanguageModel, prompts: list[list[int]], own: dict[str, object]
) -> None:
    expected = greedy(tiny, prompts, 8, 4)
    for name, value in own.items():
        setattr(tiny.model.generation_config, name, value)
    assert greedy(tiny, prompts, 8, 4) == expected


def test_nothing_to_decode(tiny: LanguageModel) -> None:
    assert greedy(tiny, [], 8, 4) == []
