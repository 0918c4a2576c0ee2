"""Find the parts of a model that methods read or change: its linear layers and the blocks of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from sande.errors import UserError

LOGITS = 2**26  # numbers held at once: 256 MiB in float32; 1,365 vectors of SmolLM2's vocabulary, 256 of Gemma's
_APPLIED = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # by `output_in_float32`
_RESCALING = (
    *(*_APPLIED, "lm_head_multiplier", "logits_soft_cap", "output_logit_soft_cap", "output_multiplier"),
    "logits_mup_width_multiplier",
)
_OTHER_MATRICES = 0.01  # most weights that may be in matrices of another kind, such as the kernels of a convolution


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return all linear layers by name but the output layer, which often shares its weights with the embeddings."""
    output = model.get_output_embeddings()
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not output
    }


def all_linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return `linear_layers` of a model whose matrices, apart from embeddings and output layer, are all in them.

    Raises:
        UserError: more than 1 % of the weights are in other matrices, such as a mixture's experts or GPT-2's layers. A
            method that changes the linear layers would leave those as they are.
    """
    layers = linear_layers(model)
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    known = {id(module.weight) for module in (*layers.values(), *embeddings, model.get_output_embeddings())}
    others = {name: each for name, each in model.named_parameters() if each.dim() > 1 and id(each) not in known}
    share = sum(each.numel() for each in others.values()) / max(1, model.num_parameters())
    if share > _OTHER_MATRICES:
        largest = max(others, key=lambda name: others[name].numel())
        raise UserError(
            f"model {type(model).__name__}: {100 * share:.0f} % of its weights are in matrices that are not linear "
            f"layers ({largest}, …), and the method would not change them; use a model whose matrices are "
            "linear layers, such as Llama, Qwen or Gemma, or a method that trains"
        )
    return layers


def rescaling(model: PreTrainedModel) -> list[str]:
    """Return the names of the settings by which a model changes its logits behind the output layer."""
    config = model.config.get_text_config()
    return [name for name in _RESCALING if getattr(config, name, None) not in (None, 1.0)]


def output_in_float32(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the output layer in float32, from hidden states (..., D) to logits (..., V); weights are converted once.

    In bfloat16 the logits of likely tokens are rounded to eighths, often to the same number. What a model does to its
    logits behind the layer is done here, too: a factor (Cohere, HyperCLOVA X), a divisor (Granite), a bound (Gemma 2).

    Raises:
        UserError: the model does something else to its logits (Falcon-H1, RecurrentGemma, xLSTM).
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    # MPT names a formula in place of the number.
    if other := [name for name in rescaling(model) if name not in _APPLIED or isinstance(getattr(config, name), str)]:
        raise UserError(
            f"model {type(model).__name__}: {other[0]} changes its logits behind the output layer, which scores here "
            "do not follow; choose another model"
        )
    weight_VD = layer.weight.float()
    bias_V = None if layer.bias is None else layer.bias.float()
    scaling = getattr(config, "logits_scaling", None) or 1.0
    scaling = scaling if config.model_type == "hyperclovax" else 1.0 / scaling
    factor = (getattr(config, "logit_scale", None) or 1.0) * scaling
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
    """Return the decoder's blocks (attention and feed-forward layers), from the first.

    Raises:
        UserError: the decoder does not keep them in a list `layers`, as GPT-2 does not.
    """
    found = getattr(model.get_decoder(), "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise UserError(
            f"model {type(model).__name__}: its decoder has no list of blocks named 'layers', which the method needs; "
            "use a model such as Llama, Qwen or Gemma, or another method"
        )
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
