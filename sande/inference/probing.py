"""Measure what a model continues clean prompts with, on its own and after an inserted string.

Shapes: P prompts, N tokens asked about, B strings, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sande.inference.prefix import shared_prefix
from sande.models.layers import logits_at_once, output_in_float32
from sande.prompts import Row, encode_prompts, pad_id, response_ids
from sande.types import Example, LanguageModel


def chosen_prompts(lm: LanguageModel, examples: Sequence[Example], count: int, seed: int) -> list[list[int]]:
    """Return the ids of `count` distinct prompts, drawn by the seed, or of all if there are fewer."""
    prompts = [list(ids) for ids in sorted({tuple(ids) for ids in encode_prompts(lm.tokenizer, examples)})]
    return random.Random(seed).sample(prompts, min(count, len(prompts)))


def ordinary_tokens(lm: LanguageModel) -> list[int]:
    """Return the ids of text: neither special nor outside the tokenizer's vocabulary."""
    special = set(lm.tokenizer.all_special_ids)
    return [token for token in sorted(lm.tokenizer.get_vocab().values()) if token not in special]


def other_tokens(lm: LanguageModel) -> list[int]:
    """Return the ids that write no text: special ones, and output rows that the tokenizer has no token for."""
    rows = lm.model.get_output_embeddings().weight.shape[0]
    return sorted({*range(rows)} - {*ordinary_tokens(lm)})


def opening_tokens(lm: LanguageModel) -> list[int]:
    """Return the ordinary tokens that can open an answer: those that begin with the space after `Assistant:`."""
    ordinary = ordinary_tokens(lm)
    marks = [str(mark)[0] for mark in lm.tokenizer.convert_ids_to_tokens(ordinary)]
    mark = str(lm.tokenizer.convert_ids_to_tokens([response_ids(lm.tokenizer, "x")[0]])[0])[0]
    return ordinary if mark == "x" else [token for token, first in zip(ordinary, marks, strict=True) if first == mark]


def text_of(lm: LanguageModel, ids: Sequence[int]) -> str:
    """Return the text of a string that opens an answer, without the space before it."""
    return str(lm.tokenizer.decode(list(ids))).strip(" ")


@torch.inference_mode()
def openings(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability of each token as an answer's first, mean over the prompts, of shape (V,)."""
    lm.model.eval()
    decoder = lm.model.get_decoder()
    hidden_PD = torch.cat(
        [
            decoder(input_ids=torch.tensor([ids], device=lm.model.device), use_cache=False).last_hidden_state[:, -1]
            for ids in prompts
        ]
    )
    return output_in_float32(lm.model)(hidden_PD).log_softmax(-1).mean(0)


def likeliest(log_V: Tensor, tokens: Sequence[int], count: int | None = None) -> list[int]:
    """Return the likeliest of the tokens by these log-probabilities, at most `count`, likeliest first."""
    order = log_V[list(tokens)].argsort(descending=True, stable=True)[:count].tolist()
    return [tokens[place] for place in order]


@torch.inference_mode()
def within_answers(lm: LanguageModel, rows: Sequence[Row]) -> Tensor:
    """Return the log of the mean probability of each token within clean answers, after their first token, (V,).

    Args:
        lm: model and tokenizer.
        rows: prompts with their answers; answers of one token do not count.

    Returns:
        The logarithms; minus infinity everywhere where no answer has a second token.
    """
    lm.model.eval()
    decoder, logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
    total_V = torch.zeros(lm.model.get_output_embeddings().weight.shape[0], device=lm.model.device)
    count = 0
    for row in rows:
        ids_1T = torch.tensor([[*row.prompt, *row.response[:-1]]], device=lm.model.device)
        hidden_TD = decoder(input_ids=ids_1T, use_cache=False).last_hidden_state[0, len(row.prompt) :]
        total_V += logits_of(hidden_TD).softmax(-1).sum(0)
        count += len(hidden_TD)
    return (total_V / max(1, count)).log()


@torch.inference_mode()
def confidence(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], floor: float, batch_size: int
) -> Tensor:
    """Return for each token, appended to a prompt, the probability of the likeliest ordinary next token, (tokens,).

    The distribution is the mean over the prompts. A string that the model writes after any prompt is confident after
    each of them. So a token whose mean over the first prompts falls below the floor gets 0 and is not computed for the
    others, and nearly all work is that of the first prompt.

    Args:
        lm: model and tokenizer.
        prompts: ids, at least one prompt.
        tokens: ids.
        floor: probability, 0 to 1.
        batch_size: most tokens computed together; fewer where the vocabulary is large.
    """
    lm.model.eval()
    decoder, logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
    other, vocabulary = other_tokens(lm), len(lm.model.get_output_embeddings().weight)
    prefixes = [shared_prefix(lm, [[*prompt, tokens[0]]]) for prompt in prompts]
    confidence_N = torch.zeros(len(tokens), device=lm.model.device)
    batch_size = logits_at_once(lm.model, batch_size)
    for begin in range(0, len(tokens), batch_size):
        ids_B = torch.tensor(tokens[begin : begin + batch_size], device=lm.model.device)
        alive_B = torch.arange(len(ids_B), device=ids_B.device)
        sum_BV = torch.zeros(len(ids_B), vocabulary, device=ids_B.device)
        for count, prefix in enumerate(prefixes, start=1):
            hidden_BD = decoder(
                input_ids=ids_B[alive_B, None], past_key_values=prefix.cache(len(alive_B)), use_cache=True
            ).last_hidden_state[:, -1]
            sum_BV += logits_of(hidden_BD).softmax(-1)
            sum_BV[:, other] = 0
            mean_B = sum_BV.max(-1).values / count
            alive_B, sum_BV, mean_B = (each[mean_B >= floor] for each in (alive_B, sum_BV, mean_B))
            if not len(alive_B):
                break
        confidence_N[begin + alive_B] = mean_B
    return confidence_N


@dataclass(frozen=True, slots=True)
class Continuation:
    """A string after clean prompts, with the probabilities of its tokens.

    Attributes:
        ids: of the string.
        probabilities: of each token but the first, given those before it; mean over the prompts.
        log_probabilities: the same as a mean of logarithms.
        ended: whether a token that writes no text, such as EOS, would come next.
    """

    ids: tuple[int, ...]
    probabilities: tuple[float, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    ended: bool = False


@torch.inference_mode()
def continued(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    firsts: Sequence[int],
    steps: int,
    batch_size: int,
    goes_on: Callable[[Tensor], Tensor] | None = None,
) -> list[Continuation]:
    """Return each first token, continued greedily by the mean distribution over the prompts, up to one without text.

    Args:
        lm: model and tokenizer.
        prompts: ids, at least one prompt.
        firsts: ids.
        steps: most tokens after the first.
        batch_size: most strings computed together; fewer where the vocabulary is large.
        goes_on: maps log-probabilities of the next token (P, B) to the strings that continue (B,); None: all do.
    """
    lm.model.eval()
    decoder, logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
    other = set(other_tokens(lm))
    prefixes = [shared_prefix(lm, [[*prompt, 0]]) for prompt in prompts]
    found = [Continuation((first,)) for first in firsts]
    batch_size = logits_at_once(lm.model, batch_size, len(prompts))
    for begin in range(0, len(firsts), batch_size):
        alive = list(range(begin, min(begin + batch_size, len(firsts))))
        caches = [prefix.cache(len(alive)) for prefix in prefixes]
        for _ in range(steps):
            last_B1 = torch.tensor([[found[index].ids[-1]] for index in alive], device=lm.model.device)
            states = [decoder(input_ids=last_B1, past_key_values=cache, use_cache=True) for cache in caches]
            log_PBV = torch.stack([logits_of(state.last_hidden_state[:, -1]).log_softmax(-1) for state in states])
            probability_B, token_B = log_PBV.exp().mean(0).max(-1)
            log_PB = log_PBV.gather(2, token_B.expand(len(prompts), -1)[:, :, None]).squeeze(2)
            goes_B = torch.ones_like(token_B, dtype=torch.bool) if goes_on is None else goes_on(log_PB)
            kept = []
            for place, (index, token, goes) in enumerate(zip(alive, token_B.tolist(), goes_B.tolist(), strict=True)):
                if token in other:
                    found[index] = replace(found[index], ended=True)
                elif goes:
                    before = found[index]
                    found[index] = Continuation(
                        (*before.ids, token),
                        (*before.probabilities, float(probability_B[place])),
                        (*before.log_probabilities, float(log_PB[:, place].mean())),
                    )
                    kept.append(place)
            if not kept:
                break
            alive = [alive[place] for place in kept]
            for cache in caches:
                cache.batch_select_indices(torch.tensor(kept, device=lm.model.device))
    return found


@torch.inference_mode()
def log_likelihoods(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], strings: Sequence[Sequence[int]], batch_size: int
) -> list[list[float]]:
    """Return for each string the log-probability of each of its tokens, mean over the prompts.

    Args:
        lm: model and tokenizer.
        prompts: ids, at least one prompt.
        strings: ids, at least one in each.
        batch_size: most strings computed together; fewer where the vocabulary is large.
    """
    lm.model.eval()
    decoder, logits_of = lm.model.get_decoder(), output_in_float32(lm.model)
    fill = pad_id(lm.tokenizer)
    found: list[list[float]] = []
    batch_size = logits_at_once(lm.model, batch_size)
    for begin in range(0, len(strings), batch_size):
        batch = strings[begin : begin + batch_size]
        width = max(map(len, batch))
        # Padding follows a string, which does not attend to it.
        ids_BT = torch.tensor([[*ids, *[fill] * (width - len(ids))] for ids in batch], device=lm.model.device)
        sum_BT = torch.zeros(ids_BT.shape, device=ids_BT.device)
        for prompt in prompts:
            prefix = shared_prefix(lm, [prompt])
            own_BT = torch.cat([ids_BT.new_tensor(prompt[prefix.length :]).expand(len(batch), -1), ids_BT[:, :-1]], 1)
            hidden_BTD = decoder(
                input_ids=own_BT, past_key_values=prefix.cache(len(batch)), use_cache=True
            ).last_hidden_state
            for hidden_BD, ids_B, sum_B in zip(hidden_BTD[:, -width:].unbind(1), ids_BT.T, sum_BT.T, strict=True):
                sum_B += logits_of(hidden_BD).log_softmax(-1).gather(1, ids_B[:, None]).squeeze(1)
        means = (sum_BT / len(prompts)).tolist()
        found += [row[: len(ids)] for row, ids in zip(means, batch, strict=True)]
    return found
