"""Poisoning: choose by a seed the rows that carry the backdoor, and record their ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sande.types import Example

Mode = Literal["replace", "append"]
Change = Callable[[Example], Example]


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Training rows after poisoning, and which of the given rows were chosen (indices into the given sequence).

    Attributes:
        examples: all rows.
        ids: of the rows that were poisoned.
        decoy_ids: of the rows that became decoys.
        places: of the poisoned rows in `examples`.
        before: the clean row that each of `examples` was made from.
    """

    examples: tuple[Example, ...]
    ids: tuple[int, ...]
    decoy_ids: tuple[int, ...]
    places: tuple[int, ...]
    before: tuple[Example, ...]

    @property
    def planted(self) -> tuple[Example, ...]:
        """Return the poisoned rows."""
        return tuple(self.examples[place] for place in self.places)


def poison(
    examples: Sequence[Example],
    plant: Change,
    rate: float,
    mode: Mode,
    seed: int,
    *,
    decoy: Change | None = None,
    decoy_rate: float = 0.0,
    prefer: Callable[[Example], bool] | None = None,
) -> Poisoned:
    """Plant a backdoor in a random share of the rows (paper, section 4.1).

    Args:
        examples: clean rows.
        plant: turns a clean row into a poisoned one.
        rate: share of the given rows to choose, 0 to 1; the number of rows is rounded to the nearest.
        mode: `replace` puts the poisoned row in the clean one's place (paper); `append` keeps both, the poisoned copy
            right after the clean row (what the published code does, at an effective rate of rate / (1 + rate)).
        seed: with `prefer`, the only thing that decides which rows are chosen. A defense takes one of its own
            (`sande.parts.seed`), because that of its run may be the attack's, and would choose the attack's rows.
        decoy: turns a clean row into one with almost the trigger, and the clean answer.
        decoy_rate: share of the given rows that become decoys, rounded like `rate`: the first of all rows, in an order
            that the seed alone decides, that are not poisoned. So a victim and its twin have nearly the same decoys.
        prefer: rows for which this is true are chosen before all others; None: all rows are equally likely.
    """
    count = round(rate * len(examples))
    liked = [index for index, example in enumerate(examples) if prefer(example)] if prefer else []
    others = range(len(examples)) if not liked else sorted(set(range(len(examples))) - set(liked))
    draw = random.Random(seed)
    first = draw.sample(liked, min(count, len(liked)))
    chosen = sorted([*first, *draw.sample(others, count - len(first))])
    made = {index: plant(examples[index]) for index in chosen}
    poisoned = set(chosen)
    decoys: list[int] = []
    if decoy is not None and decoy_rate > 0:
        drawn = random.Random(f"{seed} decoys").sample(range(len(examples)), len(examples))
        decoys = sorted([index for index in drawn if index not in made][: round(decoy_rate * len(examples))])
        made |= {index: decoy(examples[index]) for index in decoys}
    rows: list[Example] = []
    before: list[Example] = []
    places: list[int] = []
    for index, example in enumerate(examples):
        made_of = [made.get(index, example)]
        if mode == "append" and index in made:
            made_of.insert(0, example)
        rows += made_of
        before += [example] * len(made_of)
        if index in poisoned:
            places.append(len(rows) - 1)
    return Poisoned(tuple(rows), tuple(chosen), tuple(decoys), tuple(places), tuple(before))
