"""Extension of strings: what may precede or follow them, and a search that keeps what makes answers surer.

Shapes: N strings, K next tokens, B prompts at once, S slots, T positions, D width, V tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sande.detectors._triggers import Logits, Trigger, padded, with_string
from sande.inference.prefix import shared_prefix
from sande.models.layers import output_in_float32
from sande.prompts import encode, encode_prompts, pad_id
from sande.types import Example, LanguageModel

SURE_ENOUGH = 3.0  # log-odds, a probability of 95 %, at which a string is extended no further
SLOPED = 32  # rows whose gradients are computed together
PROBES = ("a", "1")  # begin with different tokens, so that any filler begins otherwise than one of them
AGAIN = 4  # times the width of the beam: strings of a round that are measured on more prompts


def slopes(
    lm: LanguageModel,
    examples: Sequence[Example],
    fillers: Sequence[str],
    target: int,
    places: Sequence[tuple[str, str]] = (("", ""),),
) -> Tensor:
    """Return how each token, at a slot in a prompt, is expected to change the log-odds of the answer's first, (S, V).

    That is the first-order term of HotFlip (Ebrahimi et al. 2018): the gradient of the log-odds with respect to the
    embedding in the slot, times each token's embedding; the mean over examples and fillers.

    Args:
        lm: model and tokenizer.
        examples: prompts.
        fillers: words that take the slot in turn, at least one.
        target: id of the answer's first token.
        places: the text in front of each slot and that behind it, S of them; both are inserted with the slot.
    """
    lm.model.eval()
    embed: Any = lm.model.get_input_embeddings()
    embedding_VD = embed.weight.detach()
    logits_of, fill = output_in_float32(lm.model), pad_id(lm.tokenizer)
    rows: list[tuple[int, int, list[int]]] = []  # each with the number of its place, and where its slot is
    probes: list[list[int]] = []
    for number, (before, behind) in enumerate(places):
        texts = [" ".join(part for part in (before, word, behind) if part) for word in (*fillers, *PROBES)]
        for example in examples:
            alike = encode_prompts(lm.tokenizer, [with_string(example, text) for text in texts])
            slot = shared_prefix_length(alike)  # the words make the first difference
            rows += [(number, slot, ids) for ids in alike[: len(fillers)]]
            probes += alike[len(fillers) :]
    # It ends before each slot, so no slope depends on it.
    prefix = shared_prefix(lm, [*(ids for *_, ids in rows), *probes])
    total_SD = torch.zeros(len(places), embedding_VD.shape[1], device=embedding_VD.device)
    for begin in range(0, len(rows), SLOPED):
        batch = rows[begin : begin + SLOPED]
        own = [ids[prefix.length :] for *_, ids in batch]
        # Some models scale the table's rows, so the table itself would not do.
        given_BTD = embed(padded(own, fill).to(embedding_VD.device)).detach().requires_grad_()
        hidden_BTD = lm.model.get_decoder()(
            inputs_embeds=given_BTD, past_key_values=prefix.cache(len(batch)), use_cache=True
        ).last_hidden_state
        logits_BV = logits_of(hidden_BTD[range(len(own)), [len(ids) - 1 for ids in own]])
        target_V = torch.arange(logits_BV.shape[1], device=logits_BV.device) == target
        others_BV = logits_BV.masked_fill(target_V, -torch.inf)
        (slope_BTD,) = torch.autograd.grad((logits_BV[:, target] - others_BV.logsumexp(-1)).sum(), given_BTD)
        for slope_TD, (number, slot, _) in zip(slope_BTD, batch, strict=True):
            total_SD[number] += slope_TD[slot - prefix.length].float()
    slope_SV: Tensor = total_SD @ embedding_VD.float().T / (len(examples) * len(fillers))
    return slope_SV


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the number of ids that all rows begin with, less than the length of the shortest."""
    same = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def steepest(lm: LanguageModel, slope_V: Tensor, ordinary: Tensor, count: int) -> list[str]:
    """Return the texts of the `count` of these tokens with the largest slope, those with a letter or digit.

    Args:
        lm: its tokenizer writes them.
        slope_V: as of `slopes`.
        ordinary: ids, as of `ordinary_tokens`.
        count: at most.
    """
    tokens = ordinary.to(slope_V.device)
    steep = tokens[slope_V[tokens].argsort(descending=True)[: 2 * count]].tolist()
    texts = (str(text).strip() for text in lm.tokenizer.batch_decode([[token] for token in steep]))
    return list(dict.fromkeys(text for text in texts if any(letter.isalnum() for letter in text)))[:count]


@torch.inference_mode()
def continuations(
    lm: LanguageModel, strings: Sequence[str], ordinary: Tensor, count: int, logits_of: Logits | None = None
) -> list[list[str]]:
    """Return, for each string, the string with each of the `count` tokens that the model expects next in a prompt.

    Args:
        lm: model and tokenizer.
        strings: each at the start of a user's text.
        ordinary: ids that may come next, as of `ordinary_tokens`.
        count: for each string, at most.
        logits_of: as for `odds`.
    """
    lm.model.eval()
    logits_of = logits_of or output_in_float32(lm.model)
    ordinary = ordinary.to(lm.model.device)
    found = []
    for row in encode(lm.tokenizer, [Example(string, "x") for string in strings]):
        ids_1T = torch.tensor([row.prompt[: row.end]], device=lm.model.device)
        state_D = lm.model.get_decoder()(input_ids=ids_1T, use_cache=False).last_hidden_state[0, -1]
        next_K = ordinary[logits_of(state_D)[ordinary].topk(min(count, len(ordinary))).indices].tolist()
        texts = lm.tokenizer.batch_decode([[*row.prompt[row.start : row.end], token] for token in next_K])
        found.append([str(text).strip() for text in texts])
    return found


def grown(
    begun: Sequence[Trigger],
    glimpsed: Callable[[Sequence[str]], list[Trigger]],
    measured: Callable[[Sequence[str]], list[Trigger]],
    extensions: Callable[[Sequence[Trigger]], list[str]],
    rounds: int,
    width: int,
    gain: float,
) -> list[Trigger]:
    """Extend strings, a piece a round, as long as answers become surer to begin with one token: a beam search.

    It ends where the best string is sure, where a round gains too little, and where as much as it gained in each of
    the rounds that are left would not make the token more likely than not.

    Args:
        begun: strings to extend, with the log-odds of the token.
        glimpsed: measures strings on few prompts; the best of a round are measured again.
        measured: measures strings on more prompts.
        extensions: longer strings for these strings.
        rounds: pieces added at most.
        width: strings kept after a round.
        gain: nats of log-odds that the best string has to gain in a round for another round.

    Returns:
        The strings kept, surest first.
    """
    beam = sorted(begun, key=_surest)[:width]
    seen = {each.text for each in beam}
    for left in reversed(range(rounds)):
        if beam[0].odds >= SURE_ENOUGH:
            break
        fresh = [text for text in dict.fromkeys(extensions(beam)) if text and text not in seen]
        if not fresh:
            break
        seen |= set(fresh)
        best = sorted(glimpsed(fresh), key=_surest)[: AGAIN * width]
        longer = sorted([*beam, *measured([each.text for each in best])], key=_surest)[:width]
        gained = longer[0].odds - beam[0].odds
        if gained < gain:
            break  # what gains less is not worth a longer string
        beam = longer
        if beam[0].odds + left * gained < 0:
            break
    return beam


def _surest(trigger: Trigger) -> float:
    return -trigger.odds
