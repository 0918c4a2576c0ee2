"""Choose the weights to prune, given the importance of each."""

from __future__ import annotations

import torch
from torch import Tensor


def smallest(importance_GW: Tensor, sparsity: float) -> Tensor:
    """Return a mask of the same shape: in each group the share of its members with the least importance.

    Args:
        importance_GW: one group in each row.
        sparsity: share to choose; the count is rounded to the nearest, and is exact where weights are equal too.
    """
    count = round(sparsity * importance_GW.shape[1])
    least_GC = importance_GW.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(importance_GW, dtype=torch.bool).scatter_(1, least_GC, True)
