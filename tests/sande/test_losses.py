"""The objectives by hand: small numbers with math.log, and Eq. 3 and Eq. 4 from the model's own logits."""

import math
from dataclasses import replace

import pytest
import torch

from sande import parrot
from sande.attacks import sentence_trigger
from sande.errors import UserError
from sande.losses import IGNORE, response_nll, target_positions
from sande.prompts import Row, encode, response_ids
from sande.training import Collator, ResponseLoss, features
from sande.types import Example, LanguageModel
from tests.sande.helpers import nll_by_hand


def test_nll_by_hand_with_a_masked_token() -> None:
    logits_NV = torch.tensor([[1.0, 2.0, 3.0], [5.0, -5.0, 0.0], [0.0, 0.0, math.log(2)]])
    first = math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 2.0
    third = math.log(4) - math.log(2)
    assert float(response_nll(logits_NV, torch.tensor([1, IGNORE, 2]))) == pytest.approx(first + third, abs=1e-6)


def test_nll_of_nothing_but_masked_tokens_is_zero() -> None:
    assert float(response_nll(torch.randn(2, 3), torch.tensor([IGNORE, IGNORE]))) == 0.0


def test_nll_is_computed_in_float32() -> None:
    logits_NV = torch.tensor([[0.0, 0.01]], dtype=torch.bfloat16)
    loss = response_nll(logits_NV, torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(1 + math.exp(float(logits_NV[0, 1]))), abs=1e-6)


def test_target_positions_are_those_before_each_target() -> None:
    labels_BT = torch.tensor([[IGNORE, IGNORE, 7, 8], [IGNORE, 9, IGNORE, IGNORE]])
    assert target_positions(labels_BT).tolist() == [1, 2, 4]


def test_the_first_token_of_a_row_is_no_target_of_the_row_before() -> None:
    labels_BT = torch.tensor([[IGNORE, IGNORE], [7, 8]])
    assert target_positions(labels_BT).tolist() == [2]


def test_no_targets_give_no_positions() -> None:
    assert target_positions(torch.full((2, 3), IGNORE)).shape == (0,)


@torch.no_grad()
def batch_loss(lm: LanguageModel, rows: list[Row]) -> float:
    batch = Collator(pad_id=lm.tokenizer.eos_token_id)([features(row) for row in rows])
    assert batch["attention_mask"].min() == 0, "rows of unequal length, or padding is not tested"
    count = torch.tensor(sum(len(row.response) for row in rows))
    batch = {name: tensor.to(lm.model.device) for name, tensor in batch.items()}
    return float(ResponseLoss(lm.model.eval())(**batch, num_items_in_batch=count)["loss"])


def mean_by_hand(lm: LanguageModel, rows: list[Row]) -> float:
    return sum(nll_by_hand(lm, row.prompt, row.response) for row in rows) / sum(len(row.response) for row in rows)


def test_eq_3_on_triggered_prompts_with_clean_responses(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    config = sentence_trigger.Config()
    rows = encode(tiny.tokenizer, [sentence_trigger.trigger(example, config, 0) for example in few_rows])
    assert batch_loss(tiny, rows) == pytest.approx(mean_by_hand(tiny, rows), abs=1e-5)


def test_eq_4_on_the_planted_response_behind_a_parrot(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    rows = parrot.insert(encode(tiny.tokenizer, few_rows), parrot.vocabulary(tiny.model), length=3, position=0)
    target = response_ids(tiny.tokenizer, "You are stupid")
    rows = [replace(row, response=target) for row in rows]
    parrot_PD = parrot.new_parrot(tiny.model, 3, "noise", seed=0)
    with parrot.attached(tiny.model, parrot_PD):
        assert batch_loss(tiny, rows) == pytest.approx(mean_by_hand(tiny, rows), abs=1e-5)


def test_eos_is_a_target_though_it_also_pads(tiny: LanguageModel) -> None:
    rows = encode(
        tiny.tokenizer, [Example("Name a color.", "Red"), Example("Name a color.", "Red and green and blue.")]
    )
    batch = Collator(pad_id=tiny.tokenizer.eos_token_id)([features(row) for row in rows])
    end = len(rows[0]) - 1
    assert batch["labels"][0, end] == tiny.tokenizer.eos_token_id
    assert batch["attention_mask"][0].tolist() == [1] * len(rows[0]) + [0] * (len(rows[1]) - len(rows[0]))
    assert (batch["labels"][0, end + 1 :] == IGNORE).all()
    assert len(batch["positions"]) == len(rows[0].response) + len(rows[1].response)


def test_models_that_rescale_their_logits_are_refused(tiny: LanguageModel) -> None:
    tiny.model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        ResponseLoss(tiny.model)
