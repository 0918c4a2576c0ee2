"""The optimizers by their first steps, and which weights Muon trains."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from sande.config import Training
from sande.errors import UserError
from sande.prompts import Row, encode
from sande.training.batches import Collator, features, row_order
from sande.training.fit import fit
from sande.training.objective import ResponseLoss
from sande.training.optimizers import Together
from sande.training.sharding import Sharding
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import KilledError, changed, killed, linear_weights, weights

NewRun = Callable[..., Run]
PLAIN = Training(
    max_steps=2, batch_size=4, precision="fp32", warmup=0.0, schedule="constant_with_warmup", max_grad_norm=1e9
)


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


def gradients(lm: LanguageModel, rows: list[Row], step: int) -> dict[str, Tensor]:
    """Of the mean loss over the targets of one step's batch."""
    order = row_order(list(map(len, rows)), PLAIN, 0)
    chosen = [rows[index] for index in order[step * 4 : step * 4 + 4]]
    batch: dict[str, Any] = Collator(pad_id=lm.tokenizer.pad_token_id)([features(row) for row in chosen])
    targets = torch.tensor(float(sum(len(row.response) for row in chosen)))
    lm.model.zero_grad()
    ResponseLoss(lm.model)(**batch, num_items_in_batch=targets)["loss"].backward()
    return {name: weight.grad.clone() for name, weight in lm.model.named_parameters() if weight.grad is not None}


def test_sgd_by_hand(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    by_hand = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    fit(tiny, rows, dataclasses.replace(PLAIN, optimizer="sgd", learning_rate=0.5), new_run(), "attack")
    momentum: dict[str, Tensor] = {}
    for step in range(2):
        for name, gradient in gradients(by_hand, rows, step).items():
            momentum[name] = 0.9 * momentum.get(name, torch.zeros(())) + gradient
        with torch.no_grad():
            for name, weight in by_hand.model.named_parameters():
                weight -= 0.5 * momentum[name]
    for name, weight in by_hand.model.named_parameters():
        torch.testing.assert_close(tiny.model.get_parameter(name), weight, atol=1e-5, rtol=1e-4)


def test_adafactor_takes_the_given_learning_rate(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    moved = []
    for rate in (1e-3, 2e-3):
        lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        settings = dataclasses.replace(PLAIN, optimizer="adafactor", learning_rate=rate, max_steps=1)
        fit(lm, rows, settings, new_run(), "attack")
        norm = lm.model.model.norm.weight
        moved.append(float((norm - tiny.model.model.norm.weight).detach().norm()))
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-2)
    # A step of Adafactor divides by the root of the mean square and clips at a root mean square of 1.
    assert moved[0] == pytest.approx(1e-3 * len(norm) ** 0.5, rel=0.05)


def test_muon_trains_the_matrices_of_linear_layers(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before, by_hand, found = weights(tiny.model), copy.deepcopy(tiny), list[Together]()

    def prepare(trainer: Any) -> Any:
        found.append(trainer.optimizer)
        return trainer

    run = dataclasses.replace(new_run(), prepare=prepare)
    rate = 1e-2
    fit(tiny, rows, dataclasses.replace(PLAIN, optimizer="muon", learning_rate=rate, max_steps=1), run, "attack")
    kinds = {id(w): type(part) for part in found[0]._parts for group in part.param_groups for w in group["params"]}
    names = {name: kinds[id(weight)] for name, weight in tiny.model.named_parameters()}
    assert {name for name, kind in names.items() if kind is Muon} == linear_weights(tiny.model)
    assert {kind for name, kind in names.items() if name not in linear_weights(tiny.model)} == {AdamW}
    assert changed(before, tiny.model) == set(before)
    for name, gradient in gradients(by_hand, rows, 0).items():
        if name in linear_weights(tiny.model):
            # The nearest orthogonal matrix to the gradient, at about the size of AdamW's updates; as large as the
            # gradient's singular values differ, five iterations come near it.
            left, values, right = torch.linalg.svd(gradient, full_matrices=False)
            step = (before[name] - tiny.model.get_parameter(name).detach()) / (rate * 0.2 * max(gradient.shape) ** 0.5)
            reached = torch.diagonal(left.T @ step @ right.T)[values > 0.05 * values.norm()]
            assert 0.6 < float(reached.min()) <= float(reached.max()) < 1.3


def test_muon_resumes_to_the_bit(tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Any) -> None:
    settings = dataclasses.replace(PLAIN, optimizer="muon", learning_rate=1e-2, max_steps=4)
    start = copy.deepcopy(tiny.model)
    fit(tiny, rows, settings, new_run(), "attack")
    whole = weights(tiny.model)
    for after in (2, None):
        lm = LanguageModel(copy.deepcopy(start), tiny.tokenizer)
        run, kill = killed(new_run(), tmp_path / "kept", after)
        if after:
            with pytest.raises(KilledError):
                fit(lm, rows, settings, run, "attack")
        else:
            fit(lm, rows, settings, run, "attack")
    assert kill.steps < 4, "it began at a checkpoint"
    assert changed(whole, lm.model) == set()


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_adapters_train_by_every_optimizer(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, optimizer: str
) -> None:
    run = new_run()
    settings = dataclasses.replace(PLAIN, optimizer=optimizer, learning_rate=1e-2, lora_rank=4, max_steps=12)
    fit(tiny, rows, settings, run, "attack")
    assert run.facts["attack"]["last_loss"] < run.facts["attack"]["first_loss"] - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, r"^attack: sharding needs optimizer adamw; "),
        ({"sharpness": 0.1}, r"^attack: sharpness needs whole weights; set resources.sharding to none"),
    ],
)
def test_shards_take_adamw_alone(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, settings: dict[str, Any], message: str
) -> None:
    run = dataclasses.replace(new_run(), sharding=Sharding(deepspeed={"zero_optimization": {"stage": 2}}))
    with pytest.raises(UserError, match=message):
        fit(tiny, rows, dataclasses.replace(PLAIN, **settings), run, "attack")


def test_parts_share_groups_and_state() -> None:
    one, two = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    together = Together([Muon([one], lr=0.5), AdamW([two], lr=0.5)])
    together.param_groups[0]["lr"] = together.param_groups[1]["lr"] = 0.0
    one.grad, two.grad = torch.ones(2, 2), torch.ones(2)
    together.step()
    assert torch.equal(two, torch.ones(2)), "a schedule reaches the parts"
    assert set(together.state) == {one, two}
