"""Training objectives as pure functions.

Shapes: N target tokens of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # label of a token that is not a target: prompt, parrot, padding


def response_nll(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the sum of -log Pr(target) over the target tokens, in float32.

    Equations 1, 3 and 4 of the paper are this sum; they differ in the prompt (x, x with the trigger or the parrot),
    the target (y; y; r_t) and the trained parameters (the model; the model; the parrot).

    Args:
        logits_NV: logits at the position before each target.
        targets_N: ids of the targets; IGNORE adds nothing.
    """
    return cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE, reduction="sum")


def chunked_response_nll(
    hidden_ND: Tensor,
    output_layer: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    chunk: int = 2048,
    longest: int | None = None,
) -> Tensor:
    """Return the `response_nll` of the output layer's logits, holding at most one chunk of them.

    With several chunks, each chunk's logits are dropped after use and recomputed in the backward pass, which costs the
    output layer one more pass; with V = 151,936 a chunk of 2,048 has 1.2 GB of float32 logits. A single chunk is not
    recomputed.

    Args:
        hidden_ND: inputs of the output layer, at the position before each target.
        output_layer: computes the logits.
        targets_N: ids of the targets; IGNORE adds nothing.
        chunk: targets whose logits are held at once.
        longest: most targets of any worker, where all workers must call the output layer equally often; a worker with
            fewer targets continues with empty chunks.
    """
    longest = len(targets_N) if longest is None else longest

    def nll(hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return response_nll(output_layer(hidden_ND), targets_N)

    if longest <= chunk:
        return nll(hidden_ND, targets_N)
    chunks = ((hidden_ND[at : at + chunk], targets_N[at : at + chunk]) for at in range(0, longest, chunk))
    # Nothing in the output layer is random, so the state of the random generators need not be kept.
    return torch.stack([checkpoint(nll, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks]).sum()


def divergence(logits_NV: Tensor, wanted_NV: Tensor) -> Tensor:
    """Return the sum over tokens of KL(wanted || model), in float32."""
    model_NV, target_NV = logits_NV.float().log_softmax(-1), wanted_NV.float().log_softmax(-1)
    return kl_div(model_NV, target_NV, reduction="sum", log_target=True)


def target_positions(labels_BT: Tensor) -> Tensor:
    """Return flat indices (row * T + column) of the positions whose next token is a target, of shape (N,)."""
    next_is_target_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    next_is_target_BT[:, :-1] = labels_BT[:, 1:] != IGNORE
    return next_is_target_BT.flatten().nonzero().squeeze(1)
