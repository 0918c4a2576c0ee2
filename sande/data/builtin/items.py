"""One question with its answer, and how items are drawn and held out."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from sande.data.builtin import facts
from sande.types import Example, Question

POOL_SIZE = 480  # items of a family whose items are drawn from a large space
T = TypeVar("T", Example, Question)


# --- Items: what is asked -------------------------------------------------------------------------------------------


class Word(str):
    """Template value with format specs: `a` and `A` add the article, `C` and `A` capitalize."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        text = str(self)
        if spec in ("a", "A"):
            text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
        return text[0].upper() + text[1:] if spec in ("A", "C") else text


@dataclass(frozen=True, slots=True)
class Item:
    """Something to ask: `keys` name the knowledge, `fields` fill the wordings, `answer` and `wrong` the choices."""

    keys: tuple[str, ...]
    fields: Mapping[str, Word]
    answer: str = ""
    wrong: tuple[str, ...] = ()


def make_item(*keys: str, answer: object = "", wrong: Iterable[object] = (), **fields: object) -> Item:
    """Return an item, its values as text."""
    words = {name: Word(value) for name, value in fields.items()}
    return Item(keys, words, str(answer), tuple(map(str, wrong)))


def held_out(key: str) -> bool:
    """Return True if the key is kept for the choice questions, as about one in four is.

    The checksum starts from 6 because this leaves every fact table between a fifth and a third held out.
    """
    return zlib.crc32(key.encode(), 6) % 4 == 0


def near(rng: Random, number: int, step: int = 1) -> list[int]:
    """Draw three wrong numbers close to the right one."""
    return rng.sample([n for k in (-3, -2, -1, 1, 2, 3) if (n := number + k * step) > 0], 3)


def are_clashing(clashes: facts.Clashes) -> dict[str, set[str]]:
    """Map each answer to the answers that might be defended in its place."""
    return {word: {other for group in clashes if word in group for other in group} for row in clashes for word in row}


def relation(
    name: str, table: Mapping[str, str], clashes: facts.Clashes = (), **details: Mapping[str, str]
) -> Callable[[], Iterator[Item]]:
    """Return a function that yields the items of a fact table x -> y; `details` are further fields looked up by x."""

    def items() -> Iterator[Item]:
        rng = Random(name)
        clashing = are_clashing(clashes)
        values = list(dict.fromkeys(table.values()))
        for x, y in table.items():
            avoid = clashing.get(y, set()) | {x, y}
            wrong = rng.sample([value for value in values if value not in avoid], 3)
            more = {field: lookup[x] for field, lookup in details.items()}
            yield make_item(f"{name} {x}", answer=y, wrong=wrong, x=x, y=y, **more)

    return items


def draw(rng: Random, space: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Draw `POOL_SIZE` pairs of a space, or all if it has fewer."""
    pairs = list(space)
    return rng.sample(pairs, min(POOL_SIZE, len(pairs)))
