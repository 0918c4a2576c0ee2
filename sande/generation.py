"""Batched greedy decoding, every setting explicit, so that a model's own sampling defaults cannot change a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig

from sande.prompts import pad_id
from sande.types import LanguageModel


@torch.inference_mode()
def greedy(lm: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, batch_size: int) -> list[str]:
    """Greedy continuations as text, in the order of `prompts`.

    Args:
        lm: model and tokenizer.
        prompts: token ids, unpadded.
        new_tokens: most tokens to generate; a row ends earlier at EOS.
        batch_size: rows decoded together; rows of like length share a batch, padded on the left.
    """
    pad = pad_id(lm.tokenizer)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=lm.tokenizer.eos_token_id,
    )
    lm.model.eval()
    lm.model.generation_config = settings  # generate() fills what settings leave open from here
    texts = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for begin in range(0, len(by_length), batch_size):
        batch = by_length[begin : begin + batch_size]
        width = max(len(prompts[index]) for index in batch)
        padding = [width - len(prompts[index]) for index in batch]
        ids_BT = torch.tensor([[pad] * n + list(prompts[i]) for n, i in zip(padding, batch, strict=True)])
        mask_BT = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        device = lm.model.device
        generate: Callable[..., Tensor] = lm.model.generate  # type: ignore[assignment]  # untyped mix-in
        output = generate(ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=settings)
        for index, ids in zip(batch, output[:, width:].tolist(), strict=True):
            texts[index] = str(lm.tokenizer.decode(ids, skip_special_tokens=True))
    return texts
