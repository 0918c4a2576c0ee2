"""The linear layers of a model: what pruning and quantisation change."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """All linear layers by name, without the output layer, which often shares its weights with the embeddings."""
    output = model.get_output_embeddings()
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not output
    }
