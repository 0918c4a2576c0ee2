"""Strings after clean prompts that grow token by token by the mean distribution over the prompts (BAIT).

Shapes: P prompts, B strings, K alternatives, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, NoRepeatNGramLogitsProcessor

from sande.inference.prefix import shared_prefix
from sande.models.layers import output_in_float32
from sande.types import LanguageModel


class Strings:
    """Strings of one length, each after every prompt, with the keys and values of all but their last token."""

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], firsts: Sequence[int], no_repeat: int
    ) -> None:
        """Begin a string with each of the tokens `firsts`.

        Args:
            lm: model and tokenizer.
            prompts: ids, at least one prompt.
            firsts: ids.
            no_repeat: length of the n-grams of which none may occur twice in a prompt and its string; 0: all may.
        """
        lm.model.eval()
        device = lm.model.device
        self._decoder, self._logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
        self._repeats = NoRepeatNGramLogitsProcessor(no_repeat) if no_repeat else None
        self._prompts = [torch.tensor(list(prompt), device=device) for prompt in prompts]
        self._caches = [shared_prefix(lm, [[*prompt, 0]]).cache(len(firsts)) for prompt in prompts]
        self.ids_BT = torch.tensor(list(firsts), device=device)[:, None]

    @torch.inference_mode()
    def next_token(self) -> Tensor:
        """Return the distribution of the next token, mean over the prompts, (B, V); call once before each `append`."""
        total_BV = torch.zeros(())
        for prompt, cache in zip(self._prompts, self._caches, strict=True):
            state = self._decoder(input_ids=self.ids_BT[:, -1:], past_key_values=cache, use_cache=True)
            logits_BV = self._logits_of(state.last_hidden_state[:, -1])
            if self._repeats is not None:
                whole_BT = torch.cat([prompt.expand(len(self.ids_BT), -1), self.ids_BT], 1)
                logits_BV = self._repeats(whole_BT, logits_BV)
            total_BV = total_BV.to(logits_BV) + logits_BV.softmax(-1)
        return total_BV / len(self._prompts)

    def append(self, tokens_B: Tensor) -> None:
        """Append a token to each string."""
        self.ids_BT = torch.cat([self.ids_BT, tokens_B[:, None]], 1)

    def keep(self, index: Tensor) -> None:
        """Keep the strings at these places, in this order."""
        self.ids_BT = self.ids_BT[index]
        for cache in self._caches:
            cache.batch_select_indices(index)

    def with_alternatives(self, index: Tensor, tokens_IK: Tensor) -> Strings:
        """Return copies of the strings at `index`, each K times in a row with another of its tokens appended."""
        other = copy.copy(self)
        other._caches = [_selected(cache, index.repeat_interleave(tokens_IK.shape[1])) for cache in self._caches]
        other.ids_BT = self.ids_BT[index].repeat_interleave(tokens_IK.shape[1], 0)
        other.append(tokens_IK.flatten())
        return other


def _selected(cache: DynamicCache, index: Tensor) -> DynamicCache:
    return DynamicCache((keys[index], values[index]) for keys, values, *_ in cache)
