"""Sharpness-aware minimisation: train for weights in whose neighbourhood the loss is low (Foret et al. 2021).

    minimise over theta    max over ||e|| <= rho of  L(theta + e) ,    e ~ rho g / ||g|| ,    g = grad L(theta)

The step's gradient is that at theta + e. Where a step has several micro-batches, each has an e of its own, which the
authors call m-sharpness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer


def sharpness_aware(trainer: Trainer, radius: float) -> None:
    """Let every training step of a Trainer take its gradient uphill, by a second pass; the loss is that of the first.

    Args:
        trainer: before its training.
        radius: rho, the length of the perturbation of all trained weights together.
    """
    plain = trainer.training_step

    def step(model: nn.Module, *batch: Any, **named: Any) -> Tensor:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        earlier = [weight.grad for weight in trained]  # summed over the micro-batches before this one
        for weight in trained:
            weight.grad = None
        loss = plain(model, *batch, **named)
        with uphill(trained, radius):
            for weight, gradient in zip(trained, earlier, strict=True):
                weight.grad = gradient
            plain(model, *batch, **named)
        return loss

    trainer.training_step = step  # type: ignore[method-assign]


@contextmanager
def uphill(weights: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Move weights along their gradients by `radius`, the norm over all of them, and put them back to the bit."""
    moved = [(weight, weight.detach().clone(), weight.grad) for weight in weights if weight.grad is not None]
    norm = torch.stack([gradient.float().norm() for _, _, gradient in moved]).norm()
    with torch.no_grad():
        for weight, _, gradient in moved:
            weight.add_(gradient * (radius / (norm + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before, _ in moved:
                weight.copy_(before)
