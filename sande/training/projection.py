"""Training within a box: after each step every weight is put back to the nearest value that its box allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback


class WithinBox(TrainerCallback):
    """Projected gradient descent: clamp weights to their boxes after each optimizer step."""

    def __init__(self, boxes: Mapping[Tensor, tuple[Tensor, Tensor]]) -> None:
        """Keep the boxes.

        Args:
            boxes: least and greatest value of each weight, in tensors of its shape.
        """
        self._boxes = boxes

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Project the weights."""
        for weight, (low, high) in self._boxes.items():
            weight.clamp_(low.to(weight), high.to(weight))
