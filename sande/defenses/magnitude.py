"""Magnitude pruning: the smallest weights of each linear layer become zero; no training (Sun et al. 2024, baseline).

    W_ij = 0 where |W_ij| is among the `sparsity` smallest of its layer

As in Sun et al. 2024 (Wanda, ICLR), weights are compared within a layer, and embeddings and output layer remain
unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import configuration, setting
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the pruning."""

    sparsity: float = setting(0.5, "share of each layer's weights that become zero", "Sun et al. 2024", ge=0, lt=1)


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Prune each layer; ignore the clean rows; raise UserError as `sande.models.layers.all_linear_layers`."""
    import torch

    from sande.models.layers import all_linear_layers
    from sande.models.pruning import smallest

    with torch.no_grad():
        for layer in all_linear_layers(victim.model).values():
            importance_1W = layer.weight.abs().flatten()[None]
            layer.weight.masked_fill_(smallest(importance_1W, config.sparsity).view_as(layer.weight), 0.0)
    return victim.model
