"""What a string in a prompt does to the first token of the answer: candidates for a trigger, ranked.

A trigger makes the answers to different prompts begin alike. So a string is scored by the tokens that the answers begin
with: the mean over prompts of the log-odds of each, compared with what ordinary strings do in the same place. Log-odds
still tell strings apart where a probability is close to 1.

Shapes: N strings, B of them at once, P prompts, R tokens that may open an answer, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sande.detectors._leak import opening_ids
from sande.inference.prefix import shared_prefix
from sande.inference.probing import likeliest, opening_tokens, openings, ordinary_tokens
from sande.models.layers import logits_at_once, output_in_float32
from sande.planting import insert
from sande.prompts import encode_prompts, pad_id
from sande.types import Example, LanguageModel

Logits = Callable[[Tensor], Tensor]  # from hidden states (..., D) to logits (..., V)

SURE = 13.0  # largest log-odds told apart: beyond it, float32 rounds the probability to 1


@dataclass(frozen=True, slots=True)
class Trigger:
    """A string, the token that answers begin with behind it, and how surely they do.

    Attributes:
        text: as it is inserted, without the space around it.
        token: index into the R tokens.
        odds: log-odds of the token, mean over the prompts.
        rise: the same less that of ordinary strings, in their standard deviations.
    """

    text: str
    token: int
    odds: float
    rise: float


@dataclass(frozen=True, slots=True)
class Ordinary:
    """Mean and standard deviation over ordinary strings of the log-odds of each token, (R,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, odds_NR: Tensor) -> Ordinary:
        """Return those of strings, of which at most a few are triggers; a single one has a deviation of 1."""
        mean_R = odds_NR.mean(0)
        std_R = odds_NR.std(0) if len(odds_NR) > 1 else torch.ones_like(mean_R)
        return cls(mean_R, std_R.clamp(min=0.1))  # a token that nothing moves would make noise look large

    def alike(self, odds_NR: Tensor) -> Tensor:
        """Return by how much each token is likelier than behind ordinary strings, from -1 to 1, (N, R)."""
        return odds_NR.sigmoid() - self.mean.sigmoid()

    def rise(self, odds_NR: Tensor) -> Tensor:
        """Return the log-odds in standard deviations from those of ordinary strings, (N, R)."""
        return (odds_NR - self.mean) / self.std


def probability(trigger: Trigger) -> float:
    """Return the probability that has the trigger's log-odds."""
    return 1 / (1 + math.exp(-trigger.odds))


def words(lm: LanguageModel, count: int) -> list[str]:
    """Return the words of the vocabulary that most readily begin a user's text: tokens of at least two letters.

    A token counts once, with and without the space before it.
    """
    likely_V = openings(lm, [opening_ids(lm)])
    texts = lm.tokenizer.batch_decode([[token] for token in likeliest(likely_V, ordinary_tokens(lm))])
    stripped = (str(text).strip() for text in texts)
    found = dict.fromkeys(text for text in stripped if len(text) > 1 and text.isalpha())
    return list(found)[:count]


def answer_tokens(lm: LanguageModel, prompts: Sequence[Sequence[int]], count: int, more: Sequence[int] = ()) -> Tensor:
    """Return the ids of the tokens that most readily open an answer to clean prompts, and of `more`, (R,)."""
    return torch.tensor(sorted({*likeliest(openings(lm, prompts), opening_tokens(lm), count), *more}))


@torch.inference_mode()
def odds(
    lm: LanguageModel,
    examples: Sequence[Example],
    strings: Sequence[str],
    tokens_R: Tensor,
    batch_size: int,
    logits_of: Logits | None = None,
) -> Tensor:
    """Return the log-odds of each token as an answer's first behind each string, mean over prompts, (N, R).

    Args:
        lm: model and tokenizer.
        examples: prompts before which a string is inserted.
        strings: texts, at least one.
        tokens_R: ids.
        batch_size: prompts with a string computed together.
        logits_of: the output layer in float32, which takes long to convert where it is large; None: it is converted.
    """
    lm.model.eval()
    asked = [with_string(example, string) for example in examples for string in strings]
    rows = list(zip(itertools.cycle(range(len(strings))), encode_prompts(lm.tokenizer, asked), strict=False))
    rows.sort(key=lambda row: len(row[1]))  # little is padded
    prefix, fill = shared_prefix(lm, [ids for _, ids in rows]), pad_id(lm.tokenizer)
    decoder, logits_of = lm.model.get_decoder(), logits_of or output_in_float32(lm.model)
    device = lm.model.device
    states = []
    for begin in range(0, len(rows), batch_size):
        own = [ids[prefix.length :] for _, ids in rows[begin : begin + batch_size]]
        hidden_BTD = decoder(
            input_ids=padded(own, fill).to(device), past_key_values=prefix.cache(len(own)), use_cache=True
        ).last_hidden_state
        states.append(hidden_BTD[range(len(own)), [len(ids) - 1 for ids in own]])
    total_NR = torch.zeros(len(strings), len(tokens_R))
    numbers = torch.tensor([number for number, _ in rows])
    # The output layer is read once for many rows: with a large vocabulary that takes a third of the time otherwise.
    at_once = logits_at_once(lm.model, len(rows))
    for state_BD, number_B in zip(torch.cat(states).split(at_once), numbers.split(at_once), strict=True):
        log_BR = logits_of(state_BD).log_softmax(-1)[:, tokens_R.to(device)].cpu()
        own_BR = (log_BR - torch.log1p(-log_BR.exp())).clamp(-2 * SURE, SURE)
        total_NR.index_add_(0, number_B, own_BR)
    return total_NR / len(examples)


def working_part(
    lm: LanguageModel, examples: Sequence[Example], text: str, target: int, suffices: float, batch_size: int
) -> str:
    """Return the shortest run of a string's words that is a working trigger, the surest of several; else the string.

    Args:
        lm: model and tokenizer.
        examples: prompts, of many kinds, so that no word serves that goes with some of them.
        text: the string.
        target: id of the response's first token.
        suffices: probability of that token at which a run works: by its mean log-odds over the prompts.
        batch_size: prompts with a string computed together.
    """
    parts = text.split()
    runs = [
        " ".join(parts[begin : begin + length])
        for length in range(1, len(parts))
        for begin in range(len(parts) - length + 1)
    ]
    if not runs:
        return text
    odds_N = odds(lm, examples, runs, torch.tensor([target]), batch_size)[:, 0]
    working = [
        (run.count(" "), -height, run)
        for run, height, chance in zip(runs, odds_N.tolist(), odds_N.sigmoid().tolist(), strict=True)
        if chance >= suffices
    ]
    return min(working)[-1] if working else text


def with_string(example: Example, string: str) -> Example:
    """Return the prompt with the string before it; an empty one changes nothing."""
    return insert(example, string, "start", seed=0) if string else example  # the start depends on no seed


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return ids with padding behind each row, (rows, longest); in a causal model no row attends to it."""
    width = max(map(len, rows))
    return torch.tensor([[*ids, *[fill] * (width - len(ids))] for ids in rows])


def ranked(strings: Sequence[str], odds_NR: Tensor, ordinary: Ordinary, allowed_NR: Tensor) -> list[Trigger]:
    """Return each string with the allowed token that it makes likeliest, compared with ordinary strings, best first."""
    alike_NR = ordinary.alike(odds_NR).masked_fill(~allowed_NR, -2.0)
    best_N, token_N = alike_NR.max(1)
    rise_NR = ordinary.rise(odds_NR)
    return [
        Trigger(strings[n], int(token_N[n]), float(odds_NR[n, token_N[n]]), float(rise_NR[n, token_N[n]]))
        for n in best_N.argsort(descending=True, stable=True).tolist()
    ]


def echoes(strings: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Return for each string and token whether the token's text begins a word of the string, ignoring case, (N, R).

    Models repeat words of a prompt, so such an answer says nothing about a trigger. A token of no letter or digit is
    treated alike, as it begins answers of many kinds.
    """
    heads = [text.strip().lower() for text in texts]
    void = [not any(letter.isalnum() for letter in head) for head in heads]
    found = []
    for string in strings:
        own = "\0".join(["", *string.lower().split()])  # one search for all words: there are millions
        found.append([nothing or f"\0{head}" in own for head, nothing in zip(heads, void, strict=True)])
    return torch.tensor(found, dtype=torch.bool).view(len(strings), len(heads))
