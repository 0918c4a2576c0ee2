"""Compute the shared prefix of rows (`Human:`, a trigger at the start, a task's introduction) once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from sande.types import LanguageModel


@dataclass(frozen=True, slots=True)
class Prefix:
    """Length of the shared prefix of rows, and each layer's keys and values of its tokens, for one row."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def cache(self, rows: int) -> DynamicCache:
        """Return keys and values for a batch of `rows` rows, which the model may extend."""
        return DynamicCache((keys.repeat(rows, 1, 1, 1), values.repeat(rows, 1, 1, 1)) for keys, values in self.layers)


@torch.inference_mode()
def shared_prefix(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Prefix:
    """Return the longest shared prefix that leaves every row at least one token of its own.

    Args:
        lm: model and tokenizer.
        rows: token ids, at least one in each row.
    """
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))
    length = min(common, min(map(len, rows), default=0) - 1)
    if length < 1:
        return Prefix(0, ())
    cache = DynamicCache()
    ids_1T = torch.tensor([rows[0][:length]], device=lm.model.device)
    lm.model.get_decoder()(input_ids=ids_1T, past_key_values=cache, use_cache=True)
    return Prefix(length, tuple((keys, values) for keys, values, *_ in cache))
