"""The loss of several parrots that train side by side on the same rows, as a function of a batch.

Shapes: K parrots, P tokens of each, R tokens of a response, B rows, T positions, N target tokens, D width, V
vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, TrainerCallback

from sande.parrot import ParrotEmbedding
from sande.training.losses import IGNORE, target_positions
from sande.training.objective import ResponseLoss


class ParrotLoss(nn.Module):
    """Sum over parrots of each one's own mean loss: -log Pr of its response, and the pull to the nearest tokens.

    Rows carry the first parrot's ids and a response of R tokens, whatever they are. Each is copied once a parrot, with
    that parrot's ids and response. So a parrot's gradient is the one that it would have alone.
    """

    accepts_loss_kwargs = True  # as `ResponseLoss`; the targets counted are those of one parrot

    def __init__(self, model: PreTrainedModel, targets_KR: Tensor, pull: float) -> None:
        """Wrap a model to which the parrots (K * P, D) are attached."""
        super().__init__()
        self.loss = ResponseLoss(model)
        self.targets_KR = targets_KR
        self.pull = pull

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss of a batch of `sande.training.batches.Collator`, for all parrots."""
        embedding = self.loss.model.get_input_embeddings()
        assert isinstance(embedding, ParrotEmbedding)
        copies = len(self.targets_KR)
        length = len(embedding.parrot_PD) // copies
        ids_NT, labels_NT = copied(
            input_ids, labels, self.targets_KR.to(input_ids.device), embedding.vocabulary, length
        )
        inputs: dict[str, Any] = {"input_ids": ids_NT, "attention_mask": attention_mask.repeat(copies, 1)}
        result: dict[str, Tensor] = self.loss(
            labels=labels_NT, positions=target_positions(labels_NT), num_items_in_batch=num_items_in_batch, **inputs
        )
        if self.pull:
            weight_VD = embedding.base.get_parameter("weight")
            share = len(positions) / num_items_in_batch  # of the step's targets, so that a step is pulled once
            result["loss"] = result["loss"] + self.pull * share * distance(embedding.parrot_PD, weight_VD) / length
        return result


def copied(
    ids_BT: Tensor, labels_BT: Tensor, targets_KR: Tensor, vocabulary: int, length: int
) -> tuple[Tensor, Tensor]:
    """Return ids and labels (K * B, T) of the rows of every parrot, the first parrot's first.

    Args:
        ids_BT: rows with the first parrot's ids, and R target tokens each.
        labels_BT: IGNORE but at the targets.
        targets_KR: response of each parrot.
        vocabulary: first id of the first parrot.
        length: P.
    """
    is_target_BT = labels_BT != IGNORE
    place_BT = (is_target_BT.cumsum(1) - 1).clamp(min=0, max=targets_KR.shape[1] - 1)
    ids, labels = [], []
    for number, target_R in enumerate(targets_KR):
        target_BT = target_R[place_BT]
        own_BT = torch.where(ids_BT >= vocabulary, ids_BT + number * length, ids_BT)
        ids.append(torch.where(is_target_BT, target_BT, own_BT))
        labels.append(torch.where(is_target_BT, target_BT, labels_BT))
    return torch.cat(ids), torch.cat(labels)


def distance(parrot_PD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return the sum over soft tokens of one minus the cosine to the nearest token of the vocabulary."""
    with torch.autocast(parrot_PD.device.type, enabled=False):  # bfloat16 would make many tokens equally near
        cosine_PV = normalize(parrot_PD.float(), dim=-1) @ normalize(weight_VD.detach().float(), dim=-1).T
    return (1 - cosine_PV.amax(1)).sum()


class ClippedEach(TrainerCallback):
    """Clip each parrot's gradient on its own, once a step: it is then summed over micro-batches and workers."""

    def __init__(self, parrots_PD: nn.Parameter, copies: int, most: float) -> None:
        """Take the trained parrots (K * P, D), their number K, and the largest norm of one parrot's gradient."""
        self.parrots_PD, self.copies, self.most = parrots_PD, copies, most

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Clip the gradient of the step in place."""
        gradient_PD = self.parrots_PD.grad
        assert gradient_PD is not None
        gradient_PD.copy_(clipped_each(gradient_PD, self.copies, self.most))


def clipped_each(gradient_PD: Tensor, copies: int, most: float) -> Tensor:
    """Return the gradient with each parrot's part scaled down to the norm `most` where it exceeds it, (K * P, D)."""
    each_KF = gradient_PD.reshape(copies, -1)
    factor_K1 = (most / each_KF.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gradient_PD.dtype).tiny)).clamp(max=1)
    clipped_PD: Tensor = (each_KF * factor_K1).reshape(gradient_PD.shape)
    return clipped_PD
