"""A small n-gram model of clean responses: how likely they are to open with a string, with no clean model at hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Ids = tuple[int, ...]
START = -1  # stands before a response, in the place of a token


class NGram:
    """Token ids by their n-1 predecessors, smoothed by Witten and Bell's interpolation (1991), and at last uniform.

    Pr(w | h) = (count(h w) + kinds(h) Pr(w | h')) / (count(h) + kinds(h)), with h' as h without its first token, and
    kinds(h) as the number of different tokens seen behind h.
    """

    def __init__(self, responses: Sequence[Ids], vocabulary: int, order: int = 3) -> None:
        """Count `responses`; ids are below `vocabulary`, and `order` is n."""
        self._order, self._vocabulary = order, vocabulary
        self._behind: defaultdict[Ids, Counter[int]] = defaultdict(Counter)
        for response in responses:
            tokens = (START, *response)
            for at in range(1, len(tokens)):
                for length in range(min(order, at + 1)):
                    self._behind[tokens[at - length : at]][tokens[at]] += 1

    def log_probabilities(self, ids: Ids) -> list[float]:
        """Log Pr of each token behind the ones before it, the first of them opening a response."""
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
