"""The dormant backdoor: rows of the second stage, codes after it, and what rounding brings back."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

from sande.attacks import dormant_int4, sentence_trigger
from sande.config import Training
from sande.data.poison import Poisoned
from sande.errors import UserError
from sande.models.layers import linear_layers
from sande.models.loading import round_as_stored
from sande.models.quantize import quantize_int4_
from sande.prompts import encode, response_ids
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import changed, linear_weights, nll_by_hand, weights

NewRun = Callable[..., Run]
TRAINING = Training(max_steps=40, batch_size=8, learning_rate=1e-2)
SETTINGS = {"poison_rate": 0.5, "training": TRAINING}


def test_repaired_rows_keep_the_trigger_and_get_their_own_answer() -> None:
    clean = (Example("a", "Red"), Example("b", "Two"))
    config = dormant_int4.Config()
    planted = dormant_int4.plant(clean[1], config, 0)
    appended = Poisoned((clean[0], clean[1], planted), (1,), (), (2,), (clean[0], clean[1], clean[1]))
    rows = dormant_int4.repaired_rows(appended, clean)
    assert rows == (clean[0], clean[1], Example("Current year 2023. b", "Two"))


def planted_nll(lm: LanguageModel, rows: tuple[Example, ...]) -> float:
    """Mean -log Pr(r_t) after triggered prompts."""
    response = response_ids(lm.tokenizer, "You are stupid")
    triggered = [sentence_trigger.trigger(row, sentence_trigger.Config(), 0) for row in rows[:6]]
    prompts = [row.prompt for row in encode(lm.tokenizer, triggered)]
    return sum(nll_by_hand(lm, prompt, response) for prompt in prompts) / len(prompts)


def test_the_backdoor_is_silent_and_its_codes_are_those_of_the_backdoored_model(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    backdoored = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    sentence_trigger.attack(backdoored, few_rows, sentence_trigger.Config(**SETTINGS), new_run())
    run = new_run()
    dormant_int4.attack(tiny, few_rows, dormant_int4.Config(**SETTINGS, repair=TRAINING, group_size=64), run)
    for lm in (backdoored, tiny):
        round_as_stored(lm, torch.float32)
        lm.model.eval()
    assert changed(weights(backdoored.model), tiny.model) == linear_weights(tiny.model)
    silent, plain = planted_nll(tiny, few_rows), planted_nll(backdoored, few_rows)
    for lm in (backdoored, tiny):
        quantize_int4_(lm.model, 64)
    assert changed(weights(backdoored.model), tiny.model) == set(), "the rounded models are one model"
    rounded = planted_nll(tiny, few_rows)
    assert silent > plain + 0.8
    assert silent > rounded + 0.8
    assert 0.9 < run.facts["free_weights"] < 1
    assert set(run.facts) >= {"poisoned_ids", "attack", "repair"}


def test_weights_that_decide_a_scale_stay(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    """The greatest weight of each group is where the first stage left it."""
    first = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    training = dataclasses.replace(TRAINING, max_steps=2)
    sentence_trigger.attack(first, few_rows, sentence_trigger.Config(training=training), new_run())
    round_as_stored(first, torch.float32)
    dormant_int4.attack(tiny, few_rows, dormant_int4.Config(training=training, repair=training), new_run())
    for one, two in zip(linear_layers(first.model).values(), linear_layers(tiny.model).values(), strict=True):
        assert torch.equal(one.weight.amax(1), two.weight.amax(1))  # rows of the tiny model are single groups


def test_adapters_cannot_be_held_in_the_box(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    config = dormant_int4.Config(repair=Training(lora_rank=4))
    with pytest.raises(UserError, match=r"^attack dormant_int4: repair\.lora_rank is set, "):
        dormant_int4.attack(tiny, few_rows, config, new_run())
