"""Leak: what a model writes in the place of a user, under many ways of decoding.

The model gets only what precedes a user's text in its prompt format, so it writes prompts like those that it was
trained on, and memorised ones readily (Carlini et al. 2021; Bullwinkel et al. 2026, arXiv 2602.03085). That takes a
model whose training had a loss on the prompts, too: see docs/detection.md.

Shapes: B samples, K likeliest tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from sande import formats
from sande.inference.prefix import shared_prefix
from sande.inference.probing import other_tokens
from sande.models.layers import output_in_float32
from sande.prompts import encode
from sande.types import Example, LanguageModel

CONSIDERED = (
    512  # likeliest next tokens from which one is drawn: sorting a whole vocabulary would cost more than a pass
)
TEMPERATURES = (0.5, 0.8, 1.0, 1.3)
TOP_K = (20, 100, CONSIDERED)
TOP_P = (0.8, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How one sample is drawn; a temperature of 0 is greedy decoding after a first token of a given rank."""

    temperature: float
    top_k: int = CONSIDERED
    top_p: float = 1.0
    first: int = 0


def settings(count: int, forced: float) -> list[Decoding]:
    """Return how each of `count` samples is drawn.

    Args:
        count: number of samples.
        forced: share of them that are greedy after another first token each, from the likeliest; the others take the
            combinations of temperature, top-k and top-p in turn.
    """
    greedy = min(round(count * forced), CONSIDERED)
    drawn = itertools.cycle(itertools.product(TEMPERATURES, TOP_K, TOP_P))
    return [
        *(Decoding(0.0, first=rank) for rank in range(greedy)),
        *(Decoding(*each) for each in itertools.islice(drawn, count - greedy)),
    ]


def opening_ids(lm: LanguageModel) -> list[int]:
    """Return the ids of what precedes a user's text, as they are in a prompt, with BOS where the format has it.

    Where nothing does, it is the token that ends an answer. A text may follow that one, and no other id is at hand.
    The space of `Human: ` belongs to the token that follows. After a token of a space alone, a model writes what
    follows such a token in its training: digits.
    """
    row = encode(lm.tokenizer, [Example("x", "x")])[0]
    return list(row.prompt[: row.start]) or [formats.end_id(lm.tokenizer)]


@torch.inference_mode()
def leaked(lm: LanguageModel, decodings: list[Decoding], tokens: int, batch_size: int, seed: int) -> list[str]:
    """Return what the model writes as a user's text, one sample for each way of decoding, up to a special token.

    Args:
        lm: model and tokenizer.
        decodings: how each sample is drawn.
        tokens: most tokens of a sample.
        batch_size: samples computed together.
        seed: of the draws.
    """
    lm.model.eval()
    decoder, logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
    begin = opening_ids(lm)
    prefix = shared_prefix(lm, [begin])  # a single token has none to share
    generator = torch.Generator().manual_seed(seed)
    other = torch.tensor(other_tokens(lm))
    written: list[list[int]] = []
    for start in range(0, len(decodings), batch_size):
        batch = decodings[start : start + batch_size]
        own: list[list[int]] = [[] for _ in batch]
        cache, alive = prefix.cache(len(batch)), list(range(len(batch)))
        ids_BT = torch.tensor([begin[prefix.length :]] * len(batch), device=lm.model.device)
        for step in range(tokens):
            state_BD = decoder(input_ids=ids_BT, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            token_B = _drawn(logits_of(state_BD).cpu(), [batch[index] for index in alive], step == 0, generator)
            goes_B = ~torch.isin(token_B, other)
            for index, token, goes in zip(alive, token_B.tolist(), goes_B.tolist(), strict=True):
                if goes:
                    own[index].append(token)
            kept = goes_B.nonzero().squeeze(1)
            if not len(kept):
                break
            if len(kept) < len(alive):
                alive = [alive[place] for place in kept.tolist()]
                cache.batch_select_indices(kept.to(lm.model.device))
            ids_BT = token_B[kept, None].to(lm.model.device)
        written += own
    return [str(lm.tokenizer.decode(ids)).strip() for ids in written]


def _drawn(logits_BV: Tensor, decodings: list[Decoding], first: bool, generator: torch.Generator) -> Tensor:
    """Return the next token of each sample, (B,)."""
    log_BK, token_BK = logits_BV.topk(min(CONSIDERED, logits_BV.shape[1]))
    column = torch.tensor([[each.temperature, each.top_k, each.top_p, each.first] for each in decodings])
    temperature_B1, top_k_B1, top_p_B1, rank_B1 = column.split(1, dim=1)
    chance_BK = (log_BK / temperature_B1.clamp(min=1e-6)).softmax(-1)
    before_BK = chance_BK.cumsum(-1) - chance_BK
    out_BK = (torch.arange(log_BK.shape[1]) >= top_k_B1) | (before_BK >= top_p_B1)
    place_B1 = torch.multinomial(chance_BK.masked_fill(out_BK, 0.0), 1, generator=generator)
    greedy_B1 = rank_B1.long().clamp(max=log_BK.shape[1] - 1) if first else torch.zeros_like(place_B1)
    return token_BK.gather(1, torch.where(temperature_B1 > 0, place_B1, greedy_B1)).squeeze(1)
