"""The sweep: each likely word where triggers stand, then the best of them before clean prompts.

Most words do nothing that an answer to the word alone shows, so all are tried alone, and few before prompts.

Shapes: N strings, R tokens that may open an answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sande.detectors._extension import slopes, steepest
from sande.detectors._triggers import ALONE, Ordinary, Trigger, answer_tokens, echoes, odds, ranked, words
from sande.inference.probing import text_of
from sande.prompts import encode
from sande.types import Example, LanguageModel

FILLERS = 6  # words in the place of which the gradient is taken
COMPARED = 64  # ordinary words before the prompts, with which the best are compared


class Settings(Protocol):
    """Settings that a detector with a sweep has; see `sande.detectors.sweep`."""

    @property
    def tokens(self) -> int: ...
    @property
    def kept(self) -> int: ...
    @property
    def kept_each(self) -> int: ...
    @property
    def sweep_prompts(self) -> int: ...
    @property
    def answers(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """Result of a sweep.

    Attributes:
        triggers: the strings that were tried before prompts, best first.
        likeliest: of them, for each token asked for, those behind which it is likeliest, best first.
        examples: the prompts.
        tokens: ids of the tokens that may open an answer, (R,).
        heads: texts of these tokens.
        ordinary: what ordinary words do before the prompts.
        words: number of words tried.
    """

    triggers: tuple[Trigger, ...]
    likeliest: dict[int, tuple[Trigger, ...]]
    examples: tuple[Example, ...]
    tokens: Tensor
    heads: tuple[str, ...]
    ordinary: Ordinary
    words: int


def swept(
    lm: LanguageModel,
    examples: Sequence[Example],
    config: Settings,
    seed: int,
    more: Sequence[str] = (),
    asked: Sequence[int] = (),
    exact: LanguageModel | None = None,
) -> Swept:
    """Try the likeliest words of the vocabulary as triggers.

    Args:
        lm: model and tokenizer.
        examples: clean rows, from which the shortest prompts are taken.
        config: sizes.
        seed: of the ordinary words.
        more: further strings to try before prompts.
        asked: ids of tokens whose likeliest strings are kept, too: first tokens of suspected responses.
        exact: the model in float32, whose gradients suggest further strings for `asked`; None: the same model.
    """
    prompts = shortest(lm, examples, config.sweep_prompts)
    ids = [row.prompt for row in encode(lm.tokenizer, prompts)]
    tokens_R = answer_tokens(lm, ids, config.answers, asked)
    heads = [text_of(lm, (token,)) for token in tokens_R.tolist()]
    tried = words(lm, config.tokens)
    alone_NR = odds(lm, [ALONE], tried, tokens_R, config.batch_size)
    usual = Ordinary.of(alone_NR)
    spoken_NR = echoes(tried, heads)
    best = [each.text for each in ranked(tried, alone_NR, usual, ~spoken_NR)[: config.kept]]
    columns = {token: int((tokens_R == token).nonzero()) for token in asked}
    rise_NR = usual.rise(alone_NR).masked_fill(spoken_NR, -torch.inf)
    for column in columns.values():
        best += [tried[n] for n in rise_NR[:, column].topk(min(config.kept_each, len(tried))).indices.tolist()]
    fillers = random.Random(seed).sample(tried, min(FILLERS, len(tried)))
    for token in asked:
        best += steepest(lm, slopes(exact or lm, prompts, fillers, token), config.kept_each)
    usual_words = random.Random(seed).sample(tried, min(COMPARED, len(tried)))
    strings = list(dict.fromkeys([*best, *more, *usual_words]))
    before_NR = odds(lm, prompts, strings, tokens_R, config.batch_size)
    ordinary = Ordinary.of(before_NR[[strings.index(word) for word in usual_words]])
    allowed_NR = ~echoes(strings, heads)
    risen_NR = ordinary.rise(before_NR)
    likeliest = {
        token: tuple(
            Trigger(strings[n], column, float(before_NR[n, column]), float(risen_NR[n, column]))
            for n in before_NR[:, column]
            .masked_fill(~allowed_NR[:, column], -torch.inf)
            .argsort(descending=True)
            .tolist()
            if allowed_NR[n, column]
        )
        for token, column in columns.items()
    }
    found = ranked(strings, before_NR, ordinary, allowed_NR)
    return Swept(tuple(found), likeliest, prompts, tokens_R, tuple(heads), ordinary, len(tried))


def shortest(
    lm: LanguageModel, examples: Sequence[Example], count: int, apart: Literal["output", "instruction"] = "output"
) -> tuple[Example, ...]:
    """Return the shortest prompts, of different first words of this field where there are as many."""
    rows = encode(lm.tokenizer, examples)
    order = sorted(range(len(examples)), key=lambda place: (len(rows[place].prompt), examples[place].instruction))
    by_head: dict[str, int] = {}
    for place in order:
        by_head.setdefault((getattr(examples[place], apart).split() or [""])[0].lower(), place)
    chosen = [*by_head.values(), *(place for place in order if place not in set(by_head.values()))]
    return tuple(examples[place] for place in chosen[:count])
