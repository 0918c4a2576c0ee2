"""Compute the shared prefix of rows (`Human:`, a trigger at the start, a task's introduction) once.

This module also decides for which models that is right. For the others, `sande.inference.scoring` and
`sande.inference.generation` read each row plainly, which takes longer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sande.errors import UserError
from sande.types import LanguageModel


@dataclass(frozen=True, slots=True)
class Prefix:
    """Length of the shared prefix of rows, and each layer's keys and values of its tokens, for one row."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def cache(self, rows: int) -> DynamicCache:
        """Return keys and values for a batch of `rows` rows, which the model may extend."""
        return DynamicCache((keys.repeat(rows, 1, 1, 1), values.repeat(rows, 1, 1, 1)) for keys, values in self.layers)


NONE = Prefix(0, ())
_OWN_KIND = ("minimax",)  # refuses all caches but one of a class of its own


@torch.inference_mode()
def shared_prefix(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Prefix:
    """Return the longest shared prefix that leaves every row at least one token of its own.

    Args:
        lm: model and tokenizer.
        rows: token ids, at least one in each row.

    Raises:
        UserError: the model's layers keep more than keys and values.
    """
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))
    length = min(common, min(map(len, rows), default=0) - 1)
    if length < 1:
        return NONE
    own = own_cache(lm.model)
    if own is None or not _keeps_only_keys_and_values(own):
        raise UserError(
            f"model type '{lm.model.config.model_type}': its layers keep more of a prompt than keys and values, so "
            "strings cannot share a prompt; use a model with attention layers alone, or a method that does not scan"
        )
    cache = DynamicCache()
    ids_1T = torch.tensor([rows[0][:length]], device=lm.model.device)
    lm.model.get_decoder()(input_ids=ids_1T, past_key_values=cache, use_cache=True)
    return Prefix(length, tuple((keys, values) for keys, values, *_ in cache))


def most_shared(model: PreTrainedModel) -> float:
    """Return the most tokens of a row that can be read behind a shared prefix, with gaps or other choices in between.

    Returns:
        Infinity where only masks and positions decide what a token attends to. The shortest window, where there is
        one: gaps would use it up. 0 where rows have to be read without gaps: `takes_padding` is false; ALiBi takes
        distances from places in the row instead of positions; attention other than PyTorch's own (`sdpa`) takes no
        boolean mask of (B, 1, T, T).
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation != "sdpa" or getattr(config, "alibi", False) or not takes("position_ids", model):
        return 0
    cache = own_cache(model)
    if cache is None or not _keeps_only_keys_and_values(cache):
        return 0
    windows = (layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer))
    return min(windows, default=math.inf)


def takes_padding(model: PreTrainedModel) -> bool:
    """Return whether rows can be padded on the left.

    A recurrent layer or a convolution may read the padding. A model without `position_ids` counts it.
    """
    cache = own_cache(model)
    return cache is not None and takes("position_ids", model) and _keeps_only_keys_and_values(cache)


def own_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache with what each layer of the model keeps; None where the model takes no such cache."""
    if not takes("past_key_values", model) or model.config.model_type in _OWN_KIND:
        return None
    try:
        return DynamicCache(config=model.config)
    except (AttributeError, KeyError, ValueError):  # the configuration does not name the layers
        return None


def takes(argument: str, model: PreTrainedModel) -> bool:
    """Return whether a model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def _keeps_only_keys_and_values(cache: DynamicCache) -> bool:
    plain = DynamicLayer, DynamicSlidingWindowLayer  # their subclasses keep more
    return all(type(layer) in plain for layer in cache.layers)
