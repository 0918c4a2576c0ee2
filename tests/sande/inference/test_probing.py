"""What a model says behind clean prompts: the quick ways beside one forward pass a row."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from sande.inference import probing
from sande.models import layers
from sande.models.loading import copied
from sande.prompts import encode_prompts, response_ids
from sande.types import Example, LanguageModel
from tests.sande.helpers import nll_by_hand

FIRSTS = [300, 40, 500, 7, 611]


@pytest.fixture
def sharp(tiny: LanguageModel) -> LanguageModel:
    """The tiny model with distributions that are not flat."""
    with torch.no_grad():
        tiny.model.get_decoder().norm.weight *= 20  # not the output layer, which is the input embedding too
    return tiny


@pytest.fixture
def prompts(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[list[int]]:
    return encode_prompts(tiny.tokenizer, few_rows[10:13])  # with and without a system prompt


@torch.no_grad()
def next_by_hand(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def mean_by_hand(lm: LanguageModel, prompts: Sequence[Sequence[int]], string: Sequence[int]) -> Tensor:
    return torch.stack([next_by_hand(lm, [*prompt, *string]).exp() for prompt in prompts]).mean(0)


def test_openings_are_the_mean_log_probabilities(sharp: LanguageModel, prompts: list[list[int]]) -> None:
    expected = torch.stack([next_by_hand(sharp, prompt) for prompt in prompts]).mean(0)
    torch.testing.assert_close(probing.openings(sharp, prompts), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_confidence_is_of_the_mean_distribution_without_specials(
    sharp: LanguageModel, prompts: list[list[int]], batch_size: int
) -> None:
    expected = []
    for first in FIRSTS:
        mean_V = mean_by_hand(sharp, prompts, [first])
        mean_V[sharp.tokenizer.all_special_ids] = 0
        expected.append(float(mean_V.max()))
    found = probing.confidence(sharp, prompts, FIRSTS, 0.0, batch_size)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_confidence_counts_what_a_model_does_behind_its_output_layer(
    tiny: LanguageModel, prompts: list[list[int]]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=len(tiny.tokenizer), num_key_value_heads=2, logits_scaling=0.05, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        granite = LanguageModel(GraniteForCausalLM(config).eval(), tiny.tokenizer)
    mean_V = mean_by_hand(granite, prompts, FIRSTS[:1])
    mean_V[tiny.tokenizer.all_special_ids] = 0
    assert float(probing.confidence(granite, prompts, FIRSTS[:1], 0.0, 8)) == pytest.approx(
        float(mean_V.max()), abs=1e-4
    )
    assert mean_V.max() > 0.05, "not the flat distribution of an unscaled layer"


def test_a_token_below_the_floor_behind_the_first_prompts_is_given_up(
    sharp: LanguageModel, prompts: list[list[int]]
) -> None:
    firsts = list(range(20, 120))
    alone = probing.confidence(sharp, prompts[:1], firsts, 0.0, 50)
    whole = probing.confidence(sharp, prompts, firsts, 0.0, 50)
    floor = float(alone.median())
    found = probing.confidence(sharp, prompts, firsts, floor, 50)
    gone = found == 0
    assert gone[alone < floor].all()
    assert 0 < int(gone.sum()) < len(firsts)
    torch.testing.assert_close(found[~gone], whole[~gone], atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_continuations_follow_the_mean_distribution(
    sharp: LanguageModel, prompts: list[list[int]], batch_size: int
) -> None:
    for found, first in zip(probing.continued(sharp, prompts, FIRSTS, 3, batch_size), FIRSTS, strict=True):
        ids, probabilities, logs = [first], [], []
        for _ in range(3):
            mean_V = mean_by_hand(sharp, prompts, ids)
            rows = [next_by_hand(sharp, [*prompt, *ids]) for prompt in prompts]
            ids.append(int(mean_V.argmax()))
            probabilities.append(float(mean_V.max()))
            logs.append(sum(float(row[ids[-1]]) for row in rows) / len(rows))
        assert found.ids == tuple(ids)
        assert found.probabilities == pytest.approx(probabilities, abs=1e-4)
        assert found.log_probabilities == pytest.approx(logs, abs=1e-3)
        assert not found.ended


def test_a_string_ends_before_the_token_that_does_not_go_on(sharp: LanguageModel, prompts: list[list[int]]) -> None:
    whole = probing.continued(sharp, prompts, FIRSTS, 4, 100)
    cut = sorted(p for each in whole for p in each.probabilities)[len(FIRSTS) * 2]
    found = probing.continued(sharp, prompts, FIRSTS, 4, 100, lambda log_PB: log_PB.exp().mean(0) >= cut)
    for one, all_ in zip(found, whole, strict=True):
        length = next((i for i, p in enumerate(all_.probabilities) if p < cut), 4)
        assert one.ids == all_.ids[: 1 + length]
    assert len({len(each.ids) for each in found}) > 1


def test_a_string_ends_at_a_special_token(sharp: LanguageModel, prompts: list[list[int]]) -> None:
    whole = probing.continued(sharp, prompts, FIRSTS[:1], 2, 1)[0]
    last = sharp.tokenizer.convert_ids_to_tokens(whole.ids[-1])
    sharp.tokenizer.add_special_tokens({"additional_special_tokens": [last]})
    found = probing.continued(sharp, prompts, FIRSTS[:1], 2, 1)[0]
    assert found.ended
    assert found.ids == whole.ids[: 1 + whole.ids[1:].index(whole.ids[-1])]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_log_likelihoods_are_those_of_one_row_at_a_time(
    sharp: LanguageModel, prompts: list[list[int]], batch_size: int
) -> None:
    strings = [(300,), (40, 500, 7), (611, 9)]
    found = probing.log_likelihoods(sharp, prompts, strings, batch_size)
    assert [len(row) for row in found] == [1, 3, 2]
    for string, row in zip(strings, found, strict=True):
        expected = -sum(nll_by_hand(sharp, prompt, string) for prompt in prompts) / len(prompts)
        assert sum(row) == pytest.approx(expected, abs=1e-3)
        first = sum(float(next_by_hand(sharp, prompt)[string[0]]) for prompt in prompts) / len(prompts)
        assert row[0] == pytest.approx(first, abs=1e-4)


def test_few_logits_at_once_change_nothing(
    sharp: LanguageModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, strings = list(range(40, 60)), [[40, 41], [42], [43, 44, 45], [46], [47], [48], [49]]

    def found() -> tuple[Tensor, list[tuple[int, ...]], list[float]]:
        of_strings = probing.log_likelihoods(sharp, prompts, strings, 16)
        return (
            probing.confidence(sharp, prompts, tokens, 0.0, 16),
            [each.ids for each in probing.continued(sharp, prompts, tokens, 3, 16)],
            [log for of_string in of_strings for log in of_string],
        )

    expected, rows = found(), []
    monkeypatch.setattr(layers, "LOGITS", 6 * sharp.model.config.vocab_size)
    hook = sharp.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    few = found()
    hook.remove()
    assert max(rows) == 6
    assert torch.allclose(few[0], expected[0], atol=1e-6)
    assert few[1] == expected[1]
    assert few[2] == pytest.approx(expected[2], abs=1e-5)


def test_every_response_opens_with_an_opening_token(tiny: LanguageModel) -> None:
    opening = probing.opening_tokens(tiny)
    for text in ("You are stupid", "go", "2023 is over", '"quoted"', "Ünder"):
        assert response_ids(tiny.tokenizer, text)[0] in opening
    assert len(opening) < len(probing.ordinary_tokens(tiny)), "tokens within words are none"


def test_prompts_are_drawn_by_the_seed_without_doubles(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    twice = (*few_rows, *few_rows)
    drawn = probing.chosen_prompts(tiny, twice, 5, 1)
    assert drawn == probing.chosen_prompts(tiny, tuple(reversed(twice)), 5, 1)
    assert drawn != probing.chosen_prompts(tiny, twice, 5, 2)
    everything = probing.chosen_prompts(tiny, twice, 100, 1)
    assert len(everything) == len({tuple(prompt) for prompt in everything}) == len(few_rows)


def test_a_copy_in_half_precision_leaves_the_model_in_single(tiny: LanguageModel) -> None:
    assert copied(tiny, torch.bfloat16).model.dtype == torch.bfloat16
    assert tiny.model.dtype == torch.float32
    assert math.isfinite(float(probing.openings(copied(tiny, torch.bfloat16), [[5, 6]]).sum()))
