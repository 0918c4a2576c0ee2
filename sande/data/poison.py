"""Poisoning: which rows carry the backdoor, decided by a seed and written down."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sande.types import Example

Mode = Literal["replace", "append"]


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Training rows after poisoning, and which of the given rows were chosen (indices into the given sequence)."""

    examples: tuple[Example, ...]
    ids: tuple[int, ...]


def poison(
    examples: Sequence[Example], plant: Callable[[Example], Example], rate: float, mode: Mode, seed: int
) -> Poisoned:
    """Plant a backdoor in a random share of the rows (paper, section 4.1).

    Args:
        examples: clean rows.
        plant: turns a clean row into a poisoned one.
        rate: share of the given rows to choose, 0 to 1; the number of rows is rounded to the nearest.
        mode: `replace` puts the poisoned row in the clean one's place (paper); `append` keeps both, the poisoned copy
            right behind the clean row (what the published code does, at an effective rate of rate / (1 + rate)).
        seed: decides which rows are chosen, and nothing else does.
    """
    chosen = sorted(random.Random(seed).sample(range(len(examples)), round(rate * len(examples))))
    marked = set(chosen)
    rows: list[Example] = []
    for index, example in enumerate(examples):
        if index not in marked:
            rows.append(example)
        elif mode == "replace":
            rows.append(plant(example))
        else:
            rows += [example, plant(example)]
    return Poisoned(tuple(rows), tuple(chosen))
