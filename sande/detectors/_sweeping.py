"""The sweep: each likely word where triggers stand, before one clean prompt, then the best of them before several.

Most words do nothing to the answer to one prompt, so all are tried before one, and few before several.

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
from sande.detectors._triggers import Ordinary, Trigger, answer_tokens, echoes, odds, ranked, words
from sande.errors import UserError
from sande.inference.probing import ordinary_tokens, text_of
from sande.prompts import encode
from sande.types import Example, LanguageModel

FILLERS = 6  # words in the place of which the gradient is taken
OPENERS = 16
COMPARED = 32  # ordinary words before the prompts, with which the best are compared


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
        strings: those that were tried before several prompts.
        triggers: the same, each with the token that it raises most, best first.
        odds: log-odds of each token behind each string, (N, R).
        allowed: False where a string repeats the token, (N, R).
        examples: the prompts.
        tokens: ids of the tokens that may open an answer, (R,).
        heads: texts of these tokens.
        ordinary: what ordinary words do before the prompts.
        openers: the words that most readily begin a user's text, likeliest first.
        words: number of words tried.
    """

    strings: tuple[str, ...]
    triggers: tuple[Trigger, ...]
    odds: Tensor
    allowed: Tensor
    examples: tuple[Example, ...]
    tokens: Tensor
    heads: tuple[str, ...]
    ordinary: Ordinary
    openers: tuple[str, ...]
    words: int

    def column(self, token: int) -> int:
        """Return the index of a token's id among the R tokens."""
        return _column(self.tokens, token)

    def likeliest(self, column: int) -> list[Trigger]:
        """Return the strings that do not repeat a token, those behind which it is likeliest first."""
        order = self.odds[:, column].masked_fill(~self.allowed[:, column], -torch.inf).argsort(descending=True)
        return [self.trigger(n, column) for n in order.tolist() if self.allowed[n, column]]

    def trigger(self, n: int, column: int) -> Trigger:
        """Return a string with a token."""
        return self.measured(self.strings[n], column, float(self.odds[n, column]))

    def measured(self, text: str, column: int, odds: float) -> Trigger:
        """Return a string with the log-odds of a token, compared with what ordinary words do."""
        rise = (odds - float(self.ordinary.mean[column])) / float(self.ordinary.std[column])
        return Trigger(text, column, odds, rise)


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
        asked: ids of tokens whose likeliest words are tried before several prompts, too: first tokens of suspected
            responses.
        exact: the model in float32, whose gradients suggest further strings for `asked`; None: the same model.

    Raises:
        UserError: the vocabulary has no word.
    """
    prompts = shortest(lm, examples, config.sweep_prompts)
    ids = [row.prompt for row in encode(lm.tokenizer, prompts)]
    tokens_R = answer_tokens(lm, ids, config.answers, asked)
    heads = [text_of(lm, (token,)) for token in tokens_R.tolist()]
    tried = words(lm, config.tokens)
    if not tried:
        raise UserError(
            "sweep: the model's tokenizer has no token of two letters or more, so there is no word to try; use "
            "'--detector first_token'"
        )
    one_NR = odds(lm, prompts[:1], tried, tokens_R, config.batch_size)
    usual = Ordinary.of(one_NR)
    spoken_NR = echoes(tried, heads)
    fillers = random.Random(seed).sample(tried, min(FILLERS, len(tried)))
    best = [each.text for each in ranked(tried, one_NR, usual, ~spoken_NR)[: config.kept]]
    rise_NR = usual.rise(one_NR).masked_fill(spoken_NR, -torch.inf)
    ordinary = torch.tensor(ordinary_tokens(lm))
    for token in asked:
        column = _column(tokens_R, token)
        best += [tried[n] for n in rise_NR[:, column].topk(min(config.kept_each, len(tried))).indices.tolist()]
        best += steepest(lm, slopes(exact or lm, prompts, fillers, token)[0], ordinary, config.kept_each)
    usual_words = random.Random(seed).sample(tried, min(COMPARED, len(tried)))
    strings = list(dict.fromkeys([*best, *more, *usual_words]))
    before_NR = odds(lm, prompts, strings, tokens_R, config.batch_size)
    compared = Ordinary.of(before_NR[[strings.index(word) for word in usual_words]])
    allowed_NR = ~echoes(strings, heads)
    return Swept(
        strings=tuple(strings),
        triggers=tuple(ranked(strings, before_NR, compared, allowed_NR)),
        odds=before_NR,
        allowed=allowed_NR,
        examples=prompts,
        tokens=tokens_R,
        heads=tuple(heads),
        ordinary=compared,
        openers=tuple(tried[:OPENERS]),
        words=len(tried),
    )


def _column(tokens_R: Tensor, token: int) -> int:
    return int((tokens_R == token).nonzero())


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
