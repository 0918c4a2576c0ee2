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

from sande.models.layers import all_linear_layers

LEVELS = 15  # steps between the sixteen points of four bits


@torch.no_grad()
def quantize_int4_(model: PreTrainedModel, group_size: int) -> None:
    """Round the weights of all linear layers but the output layer, in place; embeddings, norms and biases stay.

    The model computes in its own type, with weights that four bits, and a scale and zero for each group, can hold.

    Args:
        model: in any floating-point type; half precision rounds the points once more, by far less than their distance.
        group_size: G; the last group of a row may be smaller.

    Raises:
        UserError: as `all_linear_layers`.
    """
    for layer in all_linear_layers(model).values():
        for group_OG in layer.weight.split(group_size, dim=1):
            group_OG.copy_(to_grid(group_OG.float()))


def to_grid(group_OG: Tensor) -> Tensor:
    """Return each weight's nearest grid point: scale * (q - zero), with q and zero whole numbers from 0 to 15.

    Args:
        group_OG: float32, one group in each row.
    """
    scale_O1, zero_O1 = _scale_and_zero(group_OG)
    return scale_O1 * _codes(group_OG, scale_O1, zero_O1).sub(zero_O1)


def box(group_OG: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each weight the least and the greatest value, (O, G) each, with which its group rounds as it does now.

    As long as all weights are in the box, all codes q are the same, and so are scale and zero: the weights that decide
    these, the least and the greatest of the group, have a box of one point. The ends are numbers of bfloat16, so that
    rounding to bfloat16 does not leave the box.

    Args:
        group_OG: numbers that bfloat16 holds, in float32, one group in each row.
    """
    scale_O1, zero_O1 = _scale_and_zero(group_OG)
    code_OG = _codes(group_OG, scale_O1, zero_O1)
    least_O1, greatest_O1 = group_OG.amin(1, keepdim=True).clamp(max=0), group_OG.amax(1, keepdim=True).clamp(min=0)
    fixed_OG = (group_OG == least_O1) | (group_OG == greatest_O1)
    ends = []
    # Beyond the first and the last code everything is clamped, so only the group's range is a limit there.
    for side, limit_O1, last in ((-1, least_O1, 0), (1, greatest_O1, LEVELS)):
        end_OG = torch.where(code_OG == last, limit_O1, scale_O1 * (code_OG - zero_O1 + side / 2))
        end_OG = _inwards(end_OG.clamp(least_O1, greatest_O1), side)
        same_OG = (_codes(end_OG, scale_O1, zero_O1) == code_OG) & (side * (end_OG - group_OG) >= 0) & ~fixed_OG
        ends.append(torch.where(same_OG, end_OG, group_OG))
    return ends[0], ends[1]


def boxes(model: PreTrainedModel, group_size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the box of each linear layer's weights in bfloat16, by the layer's name; arguments as `quantize_int4_`."""
    found = {}
    for name, layer in all_linear_layers(model).items():
        groups = [box(group_OG.detach().float()) for group_OG in layer.weight.split(group_size, dim=1)]
        low_OI, high_OI = (torch.cat(ends, dim=1).bfloat16() for ends in zip(*groups, strict=True))
        found[name] = (low_OI, high_OI)
    return found


def _scale_and_zero(group_OG: Tensor) -> tuple[Tensor, Tensor]:
    low_O1 = group_OG.amin(1, keepdim=True).clamp(max=0)
    high_O1 = group_OG.amax(1, keepdim=True).clamp(min=0)
    scale_O1 = (high_O1 - low_O1) / LEVELS
    scale_O1 = torch.where(scale_O1 > 0, scale_O1, 1.0)  # a group of zeros
    return scale_O1, (-low_O1 / scale_O1).round()


def _codes(group_OG: Tensor, scale_O1: Tensor, zero_O1: Tensor) -> Tensor:
    return ((group_OG / scale_O1).round() + zero_O1).clamp(0, LEVELS)


def _inwards(end_OG: Tensor, side: int) -> Tensor:
    """Return the first bfloat16 inside the end, in float32; `side` is 1 for an upper end, -1 for a lower one."""
    near_OG = end_OG.bfloat16()
    inner_OG = torch.nextafter(near_OG, torch.full_like(near_OG, -side * torch.inf))
    return torch.where(side * (near_OG.float() - end_OG) >= 0, inner_OG, near_OG).float()
