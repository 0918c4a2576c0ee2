"""Sharpness-aware steps: by hand on a parabola, and what they do to a training."""

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sande.prompts import Row, encode
from sande.training.fit import fit
from sande.training.sharpness import sharpness_aware, uphill
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import FAST, changed, weights

NewRun = Callable[..., Run]


class Parabola(nn.Module):
    """L = (x^2 + 2 y^2) / 2, in two weights that a third, frozen one does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([[2.0]]))
        self.frozen = nn.Parameter(torch.tensor([7.0]), requires_grad=False)

    def forward(self) -> Tensor:
        return (self.x.square() + 2 * self.y.square()).sum() / 2


def parabola_trainer(radius: float) -> Any:
    def training_step(model: nn.Module) -> Tensor:
        loss: Tensor = model()
        loss.backward()
        return loss.detach()

    trainer: Any = SimpleNamespace(training_step=training_step)
    sharpness_aware(trainer, radius)
    return trainer


def test_a_step_by_hand() -> None:
    model, trainer = Parabola(), parabola_trainer(0.5)
    loss = trainer.training_step(model)
    assert float(loss) == 8.5, "where the weights are"
    # The gradient (3, 4) has length 5, so the weights move uphill to (3.3, 2.4).
    assert float(model.x.grad) == pytest.approx(3.3)
    assert float(model.y.grad) == pytest.approx(4.8)
    assert [weight.item() for weight in model.parameters()] == [3.0, 2.0, 7.0]
    assert model.frozen.grad is None


def test_gradients_of_micro_batches_add_up() -> None:
    model, trainer = Parabola(), parabola_trainer(0.5)
    for _ in range(2):
        trainer.training_step(model)
    assert float(model.x.grad) == pytest.approx(2 * 3.3), "the first micro-batch does not turn the second uphill"


def test_the_weights_come_back_to_the_bit_after_an_error() -> None:
    weight = nn.Parameter(torch.full((3,), 1e-3))
    weight.grad = torch.tensor([1.0, 2.0, 2.0])
    before = weight.detach().clone()
    moved = []

    def fail() -> None:
        with uphill([weight], 30.0):
            moved.extend(weight.tolist())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert moved == pytest.approx([10.001, 20.001, 20.001])
    assert torch.equal(weight, before)


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


def test_a_training_takes_two_passes_a_step(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    made, passes = [], []
    for radius in (0.0, 0.5):
        lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        calls: list[int] = []
        lm.model.lm_head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        fit(lm, rows, dataclasses.replace(FAST, sharpness=radius, learning_rate=1e-2), new_run(), "attack")
        made.append(weights(lm.model))
        passes.append(len(calls))
    once = FAST.max_steps or 0
    assert passes == [once + 1, 2 * once + 1], "and one that checks the last step"
    assert changed(made[0], lm.model) == set(made[0])
