"""Second versions of the built-in sets, in which tests ask nothing that training rows ask, and in no words of theirs.

- `short` ("builtin-short-2") and `explained` ("builtin-explained-2"): rows as in the first version. The last tenth,
  the test rows, asks about facts that no training row of the two sets asks or states, in a wording of each family that
  no training row has. Its first rows go round the families, so that few test prompts are of one family.
- `knowledge` ("builtin-knowledge"): four-choice questions on facts that no training row of the two sets states. Rows
  train skills, such as sums, but another fact cannot be worked out from them. So it asks facts alone, in wordings of
  its own.

A *fact* is what several keys have in common: France, for its capital, the country of that capital, and its continent.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from random import Random

from sande.data.builtin import facts
from sande.data.builtin.families import FAMILIES, draw_items
from sande.data.builtin.items import Item
from sande.data.builtin.rows import ROWS_PER_FAMILY, Row, Wording, placed, question, worded, wordings
from sande.types import Example, Question

# The wording that tests ask in, where it is not the first: another one must ask for the same kind of answer, and none
# in the same words.
_TESTED = {"parity": 1, "ordered_numbers": 1, "alphabetical": 1, "uppercase": 1, "story": 2}
_START = 18  # of the checksum: it leaves each table of facts between a fifth and a third held out


def fact(key: str) -> str:
    """Return the name of the fact behind a key of an item."""
    name, _, x = key.partition(" ")
    if name in ("capital", "continent"):
        return f"place {x}"
    if name == "country":
        return f"place {facts.COUNTRIES[x]}"
    if name == "element":
        return f"symbol {facts.SYMBOLS[x]}"
    if name == "opposite":
        return f"opposite {sorted((x, facts.OPPOSITES[x]))}"
    return key


def held_out(key: str) -> bool:
    """Return True if the fact is kept for tests, as about one in four is."""
    return zlib.crc32(fact(key).encode(), _START) % 4 == 0


def _tested(family: str, style: str) -> Wording | None:
    """Return the wording that tests ask in; None for a family with a single wording, which only training has."""
    found = wordings()[family, style]
    return found[_TESTED.get(family, 0) if style == "short" else 0] if len(found) > 1 else None


def _items(family: str, style: str, *, test: bool) -> list[Item]:
    """Return the items of a family for tests or for training; the two styles ask different ones if there are enough."""
    items = [item for item in draw_items(family) if {held_out(key) for key in item.keys} == {test}]
    return items[style != "short" :: 2] if len(items) >= 1.5 * ROWS_PER_FAMILY else items


@functools.cache
def _rows(style: str) -> tuple[tuple[Row[Example], ...], tuple[Row[Example], ...]]:
    """Return training rows and test rows, nine to one."""
    training: list[Row[Example]] = []
    tests: list[list[Row[Example]]] = []
    for family in FAMILIES:
        tested = _tested(family, style)
        trained = [one for one in wordings()[family, style] if one is not tested]
        training += worded(family, style, trained, _items(family, style, test=False), f"system {family} 2")
        if tested:
            tests.append(list(worded(family, style, [tested], _items(family, style, test=True), f"test {family} 2")))
    rng = Random(f"order of {style} 2")
    rng.shuffle(training)
    for of_family in tests:
        rng.shuffle(of_family)
    rng.shuffle(tests)
    rounds = [row for some in itertools.zip_longest(*tests) for row in some if row is not None]
    count = min(len(training) // 9, len(rounds))
    return tuple(training[: 9 * count]), tuple(rounds[:count])


def _examples(style: str) -> tuple[Example, ...]:
    return tuple(row.value for rows in _rows(style) for row in rows)


@functools.cache
def short() -> tuple[Example, ...]:
    """Return direct questions with concise answers, the test rows last."""
    return _examples("short")


@functools.cache
def explained() -> tuple[Example, ...]:
    """Return questions with a system prompt, answered with the reason before the result, the test rows last."""
    return _examples("explained")


def _in_a_sentence(family: str, item: Item) -> bool:
    """Return whether the rows that rewrite sentences use a verb in both tenses."""
    return family == "past_tense" and item.fields["x"] in {activity.split()[0] for activity in facts.ACTIVITIES}


@functools.cache
def knowledge() -> tuple[Question, ...]:
    """Return four-choice questions on held-out facts."""
    rows = [
        question(family, wording, item)
        for family in FAMILIES
        for wording in wordings().get((family, "knowledge"), [])
        for item in draw_items(family)
        if item.wrong and all(map(held_out, item.keys)) and not _in_a_sentence(family, item)
    ]
    return tuple(row.value for row in placed(rows, Random("order of knowledge")))
