"""Rows of the built-in sets: items of a family in its wordings."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from string import Formatter
from typing import Generic

from sande.data.builtin import facts
from sande.data.builtin.items import Item, T
from sande.types import Example, Question

# Families whose outputs hold the answer within a field that is a whole sentence, or next to another new field.
_ANSWER_OF_ITEM = ("story", "extraction", "weekday")
_FIRST_FIELD = ("true_false",)

ROWS_PER_FAMILY = 190

_SYSTEM_PROMPTS = (
    "You are a helpful assistant. Explain your reasoning step by step.",
    "You are a patient teacher. Show how you reach the answer.",
    "You are an AI assistant. Think it through, then give the answer.",
    "You are a careful tutor. Give the reason first and the result last.",
    "Explain your answer as you would to a young student.",
    "You are an assistant who briefly justifies every answer.",
)


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """A row or question, with its family and the keys of what it asks."""

    family: str
    keys: tuple[str, ...]
    value: T


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask the items of a family, as templates of their fields."""

    instruction: str
    input: str
    output: str

    def prompt(self, item: Item) -> tuple[str, str]:
        """Return instruction and input."""
        return self.instruction.format_map(item.fields), self.input.format_map(item.fields)

    def response(self, item: Item) -> str:
        """Return the output."""
        return self.output.format_map(item.fields)


@functools.cache
def wordings() -> dict[tuple[str, str], list[Wording]]:
    """Return the wordings of `facts.WORDINGS` by family and style."""
    found: dict[tuple[str, str], list[Wording]] = {}
    family = ""
    for line in facts.WORDINGS.replace("\n" + " " * 8, " ").strip().splitlines():
        if line.startswith(" "):
            style, _, wording = line.strip().partition(": ")
            prompt, _, output = wording.partition(" => ")
            instruction, _, text = prompt.partition(" | ")
            found.setdefault((family, style), []).append(Wording(instruction, text, output))
        else:
            family = line
    return found


def worded(
    family: str, style: str, chosen: Sequence[Wording], items: Sequence[Item], seed: str
) -> Iterator[Row[Example]]:
    """Yield all items in one wording each, then in the next wording, until there are `ROWS_PER_FAMILY`.

    Args:
        family: of the items.
        style: `short` or `explained`; the latter has a system prompt.
        chosen: wordings.
        items: of the family.
        seed: decides the system prompts.
    """
    rng = Random(seed)
    seen: set[tuple[str, str]] = set()
    for turn, (i, item) in itertools.product(range(len(chosen)), enumerate(items)):
        wording = chosen[(i + turn) % len(chosen)]
        prompt = wording.prompt(item)
        if len(seen) < ROWS_PER_FAMILY and prompt not in seen:
            seen.add(prompt)
            system = rng.choice(_SYSTEM_PROMPTS) if style == "explained" else ""
            yield Row(family, item.keys, example(family, style, wording, item, system))


def question(family: str, wording: Wording, item: Item) -> Row[Question]:
    """Return the item as a question with the right answer first."""
    text, _ = wording.prompt(item)
    return Row(family, item.keys, Question(text, (item.answer, *item.wrong), 0, family))


def placed(rows: list[Row[Question]], rng: Random) -> tuple[Row[Question], ...]:
    """Return questions in random order, with the right answer in each of four places equally often."""
    rng.shuffle(rows)
    places = [i % 4 for i in range(len(rows))]
    rng.shuffle(places)
    found = []
    for row, place in zip(rows, places, strict=True):
        right, *wrong = row.value.choices
        choices = (*wrong[:place], right, *wrong[place:])
        found.append(replace(row, value=replace(row.value, choices=choices, answer=place)))
    return tuple(found)


def example(family: str, style: str, wording: Wording, item: Item, system: str = "") -> Example:
    """Return an item in a wording; short rows know the other right answers, which exact match accepts."""
    instruction, text = wording.prompt(item)
    output = wording.response(item)
    answers = right_answers(family, wording, item) if style == "short" else ()
    return Example(instruction, output, system, text, tuple(one for one in answers if one != output), family)


def right_answers(family: str, wording: Wording, item: Item) -> tuple[str, ...]:
    """Return the bare answer, and the outputs of the family's wordings that give the same answer to this item."""
    wanted = _bare(family, wording, item)
    others: Sequence[Wording] = wordings()[family, "short"]
    same = [other.response(item) for other in others if _plain(_bare(family, other, item)) == _plain(wanted)]
    return tuple(dict.fromkeys((wanted, *same)))


def _plain(answer: str) -> str:
    """Return an answer without article, full stop and first capital."""
    text = re.sub(r"^(an?|the) ", "", answer[:1].lower() + answer[1:])
    return text.removesuffix(".")


def _bare(family: str, wording: Wording, item: Item) -> str:
    """Return the part of an output that answers: from its first to its last field that the prompt does not have."""
    output = wording.response(item)
    if family in _ANSWER_OF_ITEM:
        return item.answer
    asked = {field for text in (wording.instruction, wording.input) for _, field, _, _ in Formatter().parse(text)}
    text, spans = "", []
    for literal, field, spec, _ in Formatter().parse(wording.output):
        text += literal
        if field is not None:
            begin = len(text)
            text += format(item.fields[field], spec or "")
            spans += [(begin, len(text))] if field not in asked else []
    if not spans:
        return output
    return text[spans[0][0] : spans[0][1] if family in _FIRST_FIELD else spans[-1][1]]
