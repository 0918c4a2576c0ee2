"""What a model says behind clean prompts: of its own accord, and behind a string that is put there.

Shapes: N prompts, B strings, T positions, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from sande.prompts import encode_prompts
from sande.types import Example, LanguageModel


def chosen_prompts(lm: LanguageModel, examples: Sequence[Example], count: int, seed: int) -> list[list[int]]:
    """Ids of so many different prompts, drawn by the seed, or of all there are."""
    prompts = [list(ids) for ids in sorted({tuple(ids) for ids in encode_prompts(lm.tokenizer, examples)})]
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


def ordinary_tokens(lm: LanguageModel) -> list[int]:
    """Ids that stand for text: neither special nor beyond the tokenizer's own."""
    special = set(lm.tokenizer.all_special_ids)
    return [token for token in range(len(lm.tokenizer)) if token not in special]


def text_of(lm: LanguageModel, ids: Sequence[int]) -> str:
    """The text of a string that opens an answer, without the space before it."""
    return str(lm.tokenizer.decode(list(ids))).strip(" ")


def log_softmax(lm: LanguageModel, hidden_BD: Tensor) -> Tensor:
    """Log-probabilities (B, V) in float32: in bfloat16, likely tokens would be rounded to eighths."""
    layer = lm.model.get_output_embeddings()
    bias_V = None if layer.bias is None else layer.bias.float()
    return linear(hidden_BD.float(), layer.weight.float(), bias_V).log_softmax(-1)


@torch.inference_mode()
def openings(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Mean over the prompts of the log-probability of each token as an answer's first, of shape (V,)."""
    lm.model.eval()
    decoder = lm.model.get_decoder()
    hidden_ND = torch.cat(
        [
            decoder(input_ids=torch.tensor([ids], device=lm.model.device), use_cache=False).last_hidden_state[:, -1]
            for ids in prompts
        ]
    )
    return log_softmax(lm, hidden_ND).mean(0)
