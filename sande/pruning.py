"""Which weights are pruned, given how much each matters."""

from __future__ import annotations

import torch
from torch import Tensor


def smallest(importance_GW: Tensor, sparsity: float) -> Tensor:
    """Of each group the share of its members that matter least, as a mask of the same shape.

    Args:
        importance_GW: one group in each row.
        sparsity: share to choose; the number is rounded to the nearest, and holds among equals too.
    """
    count = round(sparsity * importance_GW.shape[1])
    least_GC = importance_GW.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(importance_GW, dtype=torch.bool).scatter_(1, least_GC, True)
