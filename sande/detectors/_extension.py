"""Extension of strings: what may precede or follow them, and a search that keeps what makes answers surer.

Shapes: N strings, K next tokens, B prompts at once, R tokens that may open an answer, T positions, D width, V tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sande.detectors._triggers import Ordinary, Trigger, of_one_length, with_string
from sande.inference.probing import ordinary_tokens
from sande.models.layers import output_in_float32
from sande.planting import Place
from sande.prompts import encode, encode_prompts
from sande.types import Example, LanguageModel


def slopes(
    lm: LanguageModel,
    examples: Sequence[Example],
    fillers: Sequence[str],
    target: int,
    before: str = "",
    behind: str = "",
    places: Sequence[Place] = ("start",),
) -> Tensor:
    """Return how each token, at a slot in a prompt, is expected to change the log-odds of the answer's first, (V,).

    That is the first-order term of HotFlip (Ebrahimi et al. 2018): the gradient of the log-odds with respect to the
    embedding in the slot, times each token's embedding; the mean over examples, places and fillers.

    Args:
        lm: model and tokenizer.
        examples: prompts.
        fillers: words that take the slot in turn, at least two that begin with different tokens.
        target: id of the answer's first token.
        before: text in front of the slot.
        behind: text behind it; both are inserted with it.
        places: where they are inserted.
    """
    lm.model.eval()
    embed: Any = lm.model.get_input_embeddings()
    embedding_VD = embed.weight.detach()
    logits_of = output_in_float32(lm.model)
    texts = [" ".join(part for part in (before, filler, behind) if part) for filler in fillers]
    rows: list[tuple[int, list[int]]] = []
    for example in examples:
        for place in places:
            alike = encode_prompts(lm.tokenizer, [with_string(example, text, place) for text in texts])
            slot = shared_prefix_length(alike)  # the fillers make the first difference
            rows += [(slot, ids) for ids in alike]
    total_D = torch.zeros(embedding_VD.shape[1], device=embedding_VD.device)
    for batch in of_one_length(rows, len(rows)):
        # Some models scale the table's rows, so the table itself would not do.
        given_BTD = embed(torch.tensor([ids for _, ids in batch], device=embedding_VD.device)).detach()
        given_BTD.requires_grad_()
        state_BD = lm.model.get_decoder()(inputs_embeds=given_BTD, use_cache=False).last_hidden_state[:, -1]
        logits_BV = logits_of(state_BD)
        target_V = torch.arange(logits_BV.shape[1], device=logits_BV.device) == target
        others_BV = logits_BV.masked_fill(target_V, -torch.inf)
        (slope_BTD,) = torch.autograd.grad((logits_BV[:, target] - others_BV.logsumexp(-1)).sum(), given_BTD)
        for slope_TD, (slot, _) in zip(slope_BTD, batch, strict=True):
            total_D += slope_TD[slot].float()
    slope_V: Tensor = embedding_VD.float() @ total_D / len(rows)
    return slope_V


def shared_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the number of ids that all rows begin with, less than the length of the shortest."""
    same = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def steepest(lm: LanguageModel, slope_V: Tensor, count: int) -> list[str]:
    """Return the texts of the `count` ordinary tokens with the largest slope, those with a letter or digit."""
    tokens = ordinary_tokens(lm)
    order = slope_V[tokens].argsort(descending=True)[: 2 * count].tolist()
    texts = (str(text).strip() for text in lm.tokenizer.batch_decode([[tokens[place]] for place in order]))
    return list(dict.fromkeys(text for text in texts if any(letter.isalnum() for letter in text)))[:count]


@torch.inference_mode()
def continuations(lm: LanguageModel, strings: Sequence[str], count: int) -> list[list[str]]:
    """Return, for each string, the string with each of the `count` tokens that the model expects next in a prompt."""
    lm.model.eval()
    logits_of = output_in_float32(lm.model)
    ordinary = torch.tensor(ordinary_tokens(lm), device=lm.model.device)
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
    effects: Callable[[Sequence[str]], Tensor],
    extensions: Callable[[Sequence[Trigger]], list[list[str]]],
    ordinary: Ordinary,
    rounds: int,
    width: int,
    gain: float,
) -> list[Trigger]:
    """Extend strings, a piece a round, as long as the answers become surer to begin with the same token: a beam search.

    Args:
        begun: strings to extend; those of one token compete with each other, and with their extensions.
        effects: log-odds of the R tokens behind strings, (N, R).
        extensions: longer strings for each string.
        ordinary: what ordinary strings do.
        rounds: pieces added at most.
        width: strings kept for each token.
        gain: nats of log-odds that the best string of a token has to gain in a round for another round.

    Returns:
        The strings kept, surest first.
    """
    beams: dict[int, list[Trigger]] = {}
    for each in sorted(_measured(begun, effects, ordinary), key=lambda each: -each.odds):
        beams.setdefault(each.token, []).append(each)
    beams = {token: kept[:width] for token, kept in beams.items()}
    open_tokens = set(beams)
    seen = {(token, each.text) for token, kept in beams.items() for each in kept}
    for _ in range(rounds):
        parents = [each for token in sorted(open_tokens) for each in beams[token]]
        pairs = {
            (parent.token, text): None
            for parent, texts in zip(parents, extensions(parents), strict=True)
            for text in texts
            if text and (parent.token, text) not in seen
        }
        if not pairs:
            break
        seen |= set(pairs)
        fresh = _measured([Trigger(text, token, 0.0, 0.0) for token, text in pairs], effects, ordinary)
        for token in sorted(open_tokens):
            before = beams[token][0].odds
            new = [each for each in fresh if each.token == token]
            kept = sorted([*beams[token], *new], key=lambda each: -each.odds)[:width]
            if kept[0].odds < before + gain:
                open_tokens.discard(token)  # what gains less is not worth a longer string
            else:
                beams[token] = kept
    return sorted((each for kept in beams.values() for each in kept), key=lambda each: -each.odds)


def _measured(
    triggers: Sequence[Trigger], effects: Callable[[Sequence[str]], Tensor], ordinary: Ordinary
) -> list[Trigger]:
    """Return the same strings and tokens with what `effects` says of them."""
    strings = list(dict.fromkeys(each.text for each in triggers))
    if not strings:
        return []
    row = {text: place for place, text in enumerate(strings)}
    odds_NR = effects(strings)
    rise_NR = ordinary.rise(odds_NR)
    return [
        replace(
            each,
            odds=float(odds_NR[row[each.text], each.token]),
            rise=float(rise_NR[row[each.text], each.token]),
        )
        for each in triggers
    ]
