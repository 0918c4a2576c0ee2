"""A small n-gram model of clean responses: how likely they begin with a string, without a clean model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Ids = tuple[int, ...]
START = -1  # takes the place of a token before a response


class NGram:
    """N-gram model of token ids, smoothed by Witten and Bell's interpolation (1991) down to a uniform distribution.

    Pr(w | h) = (count(h w) + kinds(h) Pr(w | h')) / (count(h) + kinds(h)), where h' is h without its first token and
    kinds(h) the number of different tokens seen after h.
    """

    def __init__(self, responses: Sequence[Ids], vocabulary: int, order: int = 3) -> None:
        """Count the n-grams of `responses`, whose ids are below `vocabulary`; `order` is n."""
        self._order, self._vocabulary = order, vocabulary
        self._behind: defaultdict[Ids, Counter[int]] = defaultdict(Counter)
        for response in responses:
            tokens = (START, *response)
            for at in range(1, len(tokens)):
                for length in range(min(order, at + 1)):
                    self._behind[tokens[at - length : at]][tokens[at]] += 1

    def log_probabilities(self, ids: Ids) -> list[float]:
        """Return log Pr of each token given the ones before it; the first one opens a response."""
        tokens = (START, *ids)
        return [
            math.log(self._probability(tokens[max(0, at - self._order + 1) : at], tokens[at]))
            for at in range(1, len(tokens))
        ]

    def _probability(self, history: Ids, token: int) -> float:
        shorter = self._probability(history[1:], token) if history else 1 / self._vocabulary
        counts = self._behind.get(history)
        if counts is None:
            return shorter
        return (counts[token] + len(counts) * shorter) / (counts.total() + len(counts))
