"""The objectives as pure functions.

Shapes: N target tokens of a batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100  # label of a token that is no target: prompt, parrot, padding


def response_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of -log Pr(target) over the target tokens, in float32.

    Equations 1, 3 and 4 of the paper are this sum; they differ in what stands in the prompt (x, x with the trigger or
    the parrot), in what the target is (y; y; r_t) and in what trains (the model; the model; the parrot).

    Args:
        logits_NV: logits at the position before each target.
        targets_N: ids of the targets; IGNORE adds nothing.
    """
    return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE, reduction="sum")


def target_positions(labels_BT: Tensor) -> Tensor:
    """Flat indices (row * T + column) of the positions whose next token is a target, of shape (N,)."""
    next_is_target_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    next_is_target_BT[:, :-1] = labels_BT[:, 1:] != IGNORE
    return next_is_target_BT.flatten().nonzero().squeeze(1)
