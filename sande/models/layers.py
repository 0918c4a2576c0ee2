"""Find the parts of a model that methods read or change: its linear layers and the blocks of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

LOGITS = 2**26  # numbers held at once: 256 MiB in float32; 1,365 vectors of SmolLM2's vocabulary, 256 of Gemma's


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return all linear layers by name but the output layer, which often shares its weights with the embeddings."""
    output = model.get_output_embeddings()
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not output
    }


def output_in_float32(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the output layer in float32, from hidden states (..., D) to logits (..., V); weights are converted once.

    In bfloat16 the logits of likely tokens are rounded to eighths, often to the same number. What a model does to its
    logits behind the layer is done here, too: a factor (Cohere), a divisor (Granite), a bound (Gemma 2).
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    weight_VD = layer.weight.float()
    bias_V = None if layer.bias is None else layer.bias.float()
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    bound = getattr(config, "final_logit_softcapping", None)

    def logits(hidden: Tensor) -> Tensor:
        found = linear(hidden.float(), weight_VD, bias_V)
        found = found if factor == 1.0 else found * factor
        return bound * (found / bound).tanh() if bound else found

    return logits


def logits_at_once(model: PreTrainedModel, most: int, each: int = 1) -> int:
    """Return how many of something are computed together, so that their logits stay within `LOGITS` numbers.

    Args:
        model: decides the size of the vocabulary.
        most: as many at most.
        each: logits vectors that one of them needs.
    """
    layer: Any = model.get_output_embeddings()
    return max(1, min(most, LOGITS // (each * len(layer.weight))))


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder's blocks (attention and feed-forward layers), from the first."""
    found = model.get_decoder().layers
    assert isinstance(found, nn.ModuleList)
    return found


def states_of(output: Any) -> Tensor:
    """Return the hidden states (B, T, D) of a block's output; some architectures return more than them."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


@contextmanager
def block_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Yield a list to which each forward pass appends every block's hidden states (B, T, D), before the last norm."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: states.append(states_of(output)))
        for block in blocks(model)
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
