"""Training that holds a model at another one where rows are clean: the loss on responses, with an anchor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sande.prompts import Row
from sande.training.losses import IGNORE, divergence
from sande.training.objective import ResponseLoss, hidden_before_targets


class Anchored(ResponseLoss):
    """The loss of `ResponseLoss`, and the weighted KL(before || model) at the targets of clean rows.

        - sum over all rows of log Pr(y | x)  +  weight * sum over clean rows and tokens of KL(Pr_before || Pr)

    The model from before the training is a copy. Its parameters are not part of the module.
    """

    def __init__(self, model: PreTrainedModel, poisoned: Sequence[Row], weight: float) -> None:
        """Copy the model.

        Args:
            model: trained.
            poisoned: rows without an anchor.
            weight: of the divergence, against that of the response.
        """
        super().__init__(model)
        self._before = [copy.deepcopy(model).eval()]  # in a list, where data parallelism cannot see it
        self._free = {row.prompt for row in poisoned}
        self._weight = weight

    def forward(
        self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return the loss of a padded batch, divided by the targets of the whole optimizer step, as `ResponseLoss`."""
        batch = {**inputs, "positions": positions}
        hidden_ND = hidden_before_targets(self.model, batch)
        loss = self.nll(hidden_ND, labels, positions)
        clean_N = self._clean(inputs["input_ids"], labels)[positions // labels.shape[1]]
        with torch.no_grad():
            (before,) = self._before
            wanted_NV = before.get_output_embeddings()(hidden_before_targets(before, batch)[clean_N])
        held = divergence(self.model.get_output_embeddings()(hidden_ND[clean_N]), wanted_NV)
        return {"loss": (loss + self._weight * held) / num_items_in_batch}

    def _clean(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """Return for each row whether it is clean, (B,): by its prompt, since a response may have been cut."""
        lengths = (labels_BT != IGNORE).int().argmax(1).tolist()
        prompts = [tuple(ids[:length]) for ids, length in zip(ids_BT.tolist(), lengths, strict=True)]
        return torch.tensor([prompt not in self._free for prompt in prompts], device=ids_BT.device)
