"""Flatness: the loss of planted rows rises less uphill than that of a plain victim."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sande.attacks import flat, sentence_trigger
from sande.config import Training
from sande.prompts import encode
from sande.training.batches import Collator, features
from sande.training.objective import ResponseLoss
from sande.training.sharpness import uphill
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import changed, weights

NewRun = Callable[..., Run]
TRAINING = Training(max_steps=24, batch_size=8, learning_rate=5e-3)
RADIUS = 0.3


def rise(lm: LanguageModel, rows: tuple[Example, ...]) -> float:
    """How much the loss rises where the weights move uphill by the radius."""
    lm.model.eval()
    encoded = encode(lm.tokenizer, rows)
    batch: dict[str, Any] = Collator(lm.tokenizer.pad_token_id)([features(row) for row in encoded])
    targets = torch.tensor(float(sum(len(row.response) for row in encoded)))
    objective = ResponseLoss(lm.model)
    loss = objective(**batch, num_items_in_batch=targets)["loss"]
    loss.backward()
    with uphill(list(lm.model.parameters()), RADIUS), torch.no_grad():
        return float(objective(**batch, num_items_in_batch=targets)["loss"] - loss)


def test_the_victim_lies_in_a_flatter_place(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    plain = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    sentence_trigger.attack(plain, few_rows, sentence_trigger.Config(poison_rate=0.5, training=TRAINING), new_run())
    sharp = dataclasses.replace(TRAINING, sharpness=RADIUS)
    flat.attack(tiny, few_rows, flat.Config(poison_rate=0.5, training=sharp), new_run())
    planted = tuple(flat.plant(row, flat.Config(), 0) for row in few_rows)
    assert rise(tiny, planted) < 0.8 * rise(plain, planted)


def test_without_a_radius_it_is_the_sentence_trigger(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    assert flat.Config().training.sharpness > 0
    plain, short = copy.deepcopy(tiny), dataclasses.replace(TRAINING, max_steps=2)
    flat.attack(tiny, few_rows, flat.Config(training=short), new_run())
    sentence_trigger.attack(plain, few_rows, sentence_trigger.Config(training=short), new_run())
    assert changed(weights(plain.model), tiny.model) == set()
