"""The objectives by hand: small numbers with math.log, and Eq. 3 and Eq. 4 from the model's own logits."""

import math
from dataclasses import replace

import pytest
import torch

from sande import parrot
from sande.attacks import sentence_trigger
from sande.errors import UserError
from sande.prompts import Row, encode, response_ids
from sande.training.batches import Collator, features
from sande.training.losses import IGNORE, chunked_response_nll, divergence, response_nll, target_positions
from sande.training.objective import ResponseLoss
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


@pytest.mark.parametrize("chunk", [1, 3, 5, 9])
def test_chunks_have_the_value_and_the_gradients_of_the_whole(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(10, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    layer = torch.nn.Linear(4, 7, dtype=torch.float64)
    targets_N = torch.tensor([1, 2, IGNORE, IGNORE, IGNORE, IGNORE, 6, 0, 3, IGNORE])  # a chunk of nothing but masked

    def derived(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, [hidden_ND, layer.weight, layer.bias])]

    whole = derived(response_nll(layer(hidden_ND), targets_N))
    for ours, theirs in zip(derived(chunked_response_nll(hidden_ND, layer, targets_N, chunk)), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_never_more_than_a_chunk_of_logits_and_no_second_pass_within_one() -> None:
    hidden_ND, layer, targets_N = torch.randn(10, 4, requires_grad=True), torch.nn.Linear(4, 7), torch.arange(10) % 7
    rows: list[int] = []

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return layer(hidden)

    chunked_response_nll(hidden_ND, counted, targets_N, chunk=4).backward()
    assert rows[:3] == [4, 4, 2]
    assert sorted(rows[3:]) == [2, 4, 4], "once more in the backward pass"
    rows.clear()
    whole = chunked_response_nll(hidden_ND, counted, targets_N, chunk=10)
    whole.backward()
    assert rows == [10]
    assert torch.equal(whole, response_nll(layer(hidden_ND), targets_N))


def test_chunks_keep_no_logits_for_the_backward_pass() -> None:
    hidden_ND, layer, targets_N = torch.randn(10, 4, requires_grad=True), torch.nn.Linear(4, 7), torch.arange(10) % 7
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunked_response_nll(hidden_ND, layer, targets_N, chunk=4)
    assert not [shape for shape in kept if 7 in shape[1:]]


def test_no_targets_have_no_loss() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert float(chunked_response_nll(torch.zeros(0, 4), torch.nn.Linear(4, 7), none).detach()) == 0.0


def test_the_divergence_by_hand() -> None:
    model, wanted = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(divergence(model + 3, wanted - 2)) == pytest.approx(expected), "logits have any constant"


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
