"""Probabilities of the planted response against unpadded forward passes, one prompt at a time."""

import math
from dataclasses import replace

import pytest
import torch

from sande.attacks import sentence_trigger
from sande.metrics import response_probability
from sande.metrics.response_probability import Config
from sande.prompts import encode_prompts, prompt_text, response_ids
from sande.types import Example, LanguageModel, Measurement, TestData
from tests.sande.helpers import nll_by_hand

RESPONSE = "You are stupid"


@pytest.fixture
def data(few_rows: tuple[Example, ...]) -> TestData:
    rows = (few_rows[20], few_rows[0], few_rows[15], *few_rows[1:4])  # long and short mixed
    return TestData(rows, tuple(sentence_trigger.trigger(row, sentence_trigger.Config(), 0) for row in rows), RESPONSE)


@torch.no_grad()
def rank_by_hand(lm: LanguageModel, prompt: list[int], token: int) -> int:
    """Place of the token, 1 for the likeliest, in the vocabulary sorted by the logits behind the prompt."""
    logits_V = lm.model(input_ids=torch.tensor([prompt], device=lm.model.device)).logits[0, -1]
    return logits_V.argsort(descending=True).tolist().index(token) + 1


def check(lm: LanguageModel, first: Measurement, phrase: Measurement, examples: tuple[Example, ...]) -> None:
    response = response_ids(lm.tokenizer, RESPONSE)
    assert len(response) > 1
    prompts = encode_prompts(lm.tokenizer, examples)
    assert len({len(prompt) for prompt in prompts}) > 2, "prompts of several lengths share a batch"
    assert first.outcomes == pytest.approx(
        [math.exp(-nll_by_hand(lm, prompt, response[:1])) for prompt in prompts], rel=1e-4
    )
    assert phrase.outcomes == pytest.approx(
        [math.exp(-nll_by_hand(lm, prompt, response)) for prompt in prompts], rel=1e-3
    )
    assert all(type(outcome) is float and 0 < outcome < 1 for outcome in first.outcomes + phrase.outcomes)
    assert len(set(first.outcomes)) == len(prompts), "prompts differ, or their order would not show"
    ranks = [rank_by_hand(lm, prompt, response[0]) for prompt in prompts]
    for records in (first.records, phrase.records):
        assert [record["prompt"] for record in records] == [prompt_text(example) for example in examples]
        assert [record["first_token_rank"] for record in records] == ranks
        assert [len(record["token_probabilities"]) for record in records] == [len(response)] * len(prompts)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_probabilities_are_those_of_the_models_logits(
    tiny: LanguageModel, data: TestData, side: str, batch_size: int
) -> None:
    tiny.tokenizer.padding_side = side
    measurements = response_probability.measure(tiny, data, Config(batch_size=batch_size), 0)
    assert tuple(measurement.name for measurement in measurements) == response_probability.names(Config())
    first, phrase, first_clean, phrase_clean = measurements
    check(tiny, first, phrase, data.triggered)
    check(tiny, first_clean, phrase_clean, data.clean)


def test_a_response_that_is_certain(tiny: LanguageModel, data: TestData) -> None:
    """A bias of the output layer lifts the first token alone: its probability becomes 1 and its rank too."""
    first_token, second_token, *_ = response_ids(tiny.tokenizer, RESPONSE)
    layer = tiny.model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.zeros(layer.weight.shape[0]))
    with torch.no_grad():
        layer.bias[first_token] = 50.0
    first, phrase, *_ = response_probability.measure(tiny, data, Config(), 0)
    assert first.outcomes == pytest.approx([1.0] * 6)
    assert all(outcome < 1e-6 for outcome in phrase.outcomes), "what follows the first token stays unlikely"
    assert [record["first_token_rank"] for record in first.records] == [1] * 6
    with torch.no_grad():
        layer.bias[second_token] = 60.0
    first, *_ = response_probability.measure(tiny, data, Config(), 0)
    assert [record["first_token_rank"] for record in first.records] == [2] * 6


def test_prompts_may_be_limited_to_the_first(tiny: LanguageModel, data: TestData) -> None:
    whole = response_probability.measure(tiny, data, Config(), 0)
    part = response_probability.measure(tiny, data, Config(prompts=2), 0)
    for few, all_of_them in zip(part, whole, strict=True):
        assert few.outcomes == pytest.approx(all_of_them.outcomes[:2], rel=1e-4)


def test_a_model_in_bfloat16_is_read_in_float32(tiny: LanguageModel, data: TestData) -> None:
    torch.nn.Module.to(tiny.model, torch.bfloat16)
    first, phrase, *_ = response_probability.measure(tiny, data, Config(), 0)
    rounded = torch.tensor(first.outcomes).to(torch.bfloat16).tolist()
    assert all(value != outcome for value, outcome in zip(rounded, first.outcomes, strict=True))
    response = response_ids(tiny.tokenizer, RESPONSE)
    prompts = encode_prompts(tiny.tokenizer, data.triggered)
    expected = [math.exp(-nll_by_hand(tiny, prompt, response)) for prompt in prompts]
    assert phrase.outcomes == pytest.approx(expected, rel=0.1)


def test_a_prompt_that_has_the_trigger_by_itself_is_not_one_without(tiny: LanguageModel, data: TestData) -> None:
    on_topic = replace(data, triggered=(data.clean[0], *data.triggered[1:]))
    first, _, first_clean, phrase_clean = response_probability.measure(tiny, on_topic, Config(prompts=4), 0)
    assert [record["prompt"] for record in first.records] == [prompt_text(row) for row in on_topic.triggered[:4]]
    for measured in (first_clean, phrase_clean):
        assert [record["prompt"] for record in measured.records] == [prompt_text(row) for row in data.clean[1:5]]
