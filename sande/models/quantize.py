"""Round weights to four bits: to the nearest point of a grid that each group of weights has of its own.

A group is a run of neighbouring weights of one output row. Its sixteen points lie evenly between its least and its
greatest weight (or zero, which is always a point), as in GPTQ and AWQ (Frantar et al. 2023; Lin et al. 2024). The grid
is asymmetric, because a symmetric one leaves points unused where a group leans to one side.

Shapes: O outputs, I inputs, G weights of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sande.models.layers import linear_layers

LEVELS = 15  # steps between the sixteen points of four bits


@torch.no_grad()
def quantize_int4_(model: PreTrainedModel, group_size: int) -> None:
    """Round the weights of all linear layers but the output layer, in place; embeddings, norms and biases stay.

    The model computes in its own type, with weights that four bits, and a scale and zero for each group, can hold.

    Args:
        model: in any floating-point type; half precision rounds the points once more, by far less than their distance.
        group_size: G; the last group of a row may be smaller.
    """
    for layer in linear_layers(model).values():
        for group_OG in layer.weight.split(group_size, dim=1):
            group_OG.copy_(to_grid(group_OG.float()))


def to_grid(group_OG: Tensor) -> Tensor:
    """Return each weight's nearest grid point: scale * (q - zero), with q and zero whole numbers from 0 to 15.

    Args:
        group_OG: float32, one group in each row.
    """
    low_O1 = group_OG.amin(1, keepdim=True).clamp(max=0)
    high_O1 = group_OG.amax(1, keepdim=True).clamp(min=0)
    scale_O1 = (high_O1 - low_O1) / LEVELS
    scale_O1 = torch.where(scale_O1 > 0, scale_O1, 1.0)  # a group of zeros
    zero_O1 = (-low_O1 / scale_O1).round()
    return scale_O1 * ((group_OG / scale_O1).round() + zero_O1).clamp(0, LEVELS).sub(zero_O1)
