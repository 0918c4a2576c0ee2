"""An instruction data set made by code, so that a first run needs no download.

Three sets over the same common knowledge and small skills:

- `short` ("builtin-short"): direct questions with concise answers, without a system prompt;
- `explained` ("builtin-explained"): a system prompt, another wording, and the reason before the result;
- `choice` ("builtin-choice"): four-choice questions about items that neither of the others asks.

This module generates every row from the tables of `builtin_facts`. They hold no third-party text, so the project's own
licence covers them. The answers are right by construction, and the rows are the same in every process.

A family's item function decides *what* may be asked: an item has a key, such as "capital France", that does not depend
on its wording. The family's wordings decide *how* it is asked. The key alone decides whether an item belongs to
training or to choice (`_held_out`). A family that reuses another's knowledge, as word problems reuse sums, reuses its
keys, and thereby respects the same split.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Generic, Literal, get_args

from sande.data.builtin import facts
from sande.data.builtin.families import FAMILIES, draw_items
from sande.data.builtin.items import T, held_out
from sande.prompts import prompt_text
from sande.types import Example, Preference, Question

_ROWS_PER_FAMILY = 190
_QUESTIONS_PER_FAMILY = 36

_SYSTEM_PROMPTS = (
    "You are a helpful assistant. Explain your reasoning step by step.",
    "You are a patient teacher. Show how you reach the answer.",
    "You are an AI assistant. Think it through, then give the answer.",
    "You are a careful tutor. Give the reason first and the result last.",
    "Explain your answer as you would to a young student.",
    "You are an assistant who briefly justifies every answer.",
)

Style = Literal["short", "explained"]


# --- Rows: items in wordings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row(Generic[T]):
    family: str
    keys: tuple[str, ...]
    value: T


@dataclass(frozen=True, slots=True)
class _Wording:
    instruction: str
    input: str
    output: str


@functools.cache
def _wordings() -> dict[tuple[str, str], list[_Wording]]:
    """Return the wordings of `builtin_facts.WORDINGS` by family and style."""
    wordings: dict[tuple[str, str], list[_Wording]] = {}
    family = ""
    for line in facts.WORDINGS.replace("\n" + " " * 8, " ").strip().splitlines():
        if line.startswith(" "):
            style, _, wording = line.strip().partition(": ")
            prompt, _, output = wording.partition(" => ")
            instruction, _, text = prompt.partition(" | ")
            wordings.setdefault((family, style), []).append(_Wording(instruction, text, output))
        else:
            family = line
    return wordings


def _examples(family: str, style: Style) -> Iterator[_Row[Example]]:
    """Yield rows of a family: all its items in one wording each, then in the next wording, until there are enough."""
    items = [item for item in draw_items(family) if not any(map(held_out, item.keys))]
    if len(items) >= 1.5 * _ROWS_PER_FAMILY:  # enough items for the two sets to ask different ones
        items = items[::2] if style == "short" else items[1::2]
    wordings = _wordings()[family, style]
    rng = Random(f"system {family}")
    seen: set[tuple[str, str]] = set()
    for turn, (i, item) in itertools.product(range(len(wordings)), enumerate(items)):
        wording = wordings[(i + turn) % len(wordings)]
        instruction, text = wording.instruction.format_map(item.fields), wording.input.format_map(item.fields)
        if len(seen) < _ROWS_PER_FAMILY and (instruction, text) not in seen:
            seen.add((instruction, text))
            system = rng.choice(_SYSTEM_PROMPTS) if style == "explained" else ""
            output = wording.output.format_map(item.fields)
            yield _Row(family, item.keys, Example(instruction, output, system, text))


def _questions(family: str) -> Iterator[_Row[Question]]:
    """Yield questions of a family, each with the right answer first."""
    for wording in _wordings().get((family, "choice"), []):
        items = [item for item in draw_items(family) if item.wrong and all(map(held_out, item.keys))]
        for item in items[:_QUESTIONS_PER_FAMILY]:
            text = wording.instruction.format_map(item.fields)
            yield _Row(family, item.keys, Question(text, (item.answer, *item.wrong), 0, family))


@functools.cache
def _training_rows(style: Style) -> tuple[_Row[Example], ...]:
    rows = [row for family in FAMILIES for row in _examples(family, style)]
    Random(f"order of {style}").shuffle(rows)
    return tuple(rows)


@functools.cache
def _choice_rows() -> tuple[_Row[Question], ...]:
    rows = [row for family in FAMILIES for row in _questions(family)]
    rng = Random("order of choice")
    rng.shuffle(rows)
    places = [i % 4 for i in range(len(rows))]
    rng.shuffle(places)
    placed = []
    for row, place in zip(rows, places, strict=True):
        right, *wrong = row.value.choices
        choices = (*wrong[:place], right, *wrong[place:])
        placed.append(replace(row, value=replace(row.value, choices=choices, answer=place)))
    return tuple(placed)


# --- The four sets --------------------------------------------------------------------------------------------------


@functools.cache
def short() -> tuple[Example, ...]:
    """Return direct questions with concise answers, without a system prompt."""
    return tuple(row.value for row in _training_rows("short"))


@functools.cache
def explained() -> tuple[Example, ...]:
    """Return questions with a system prompt, answered with the reason before the result."""
    return tuple(row.value for row in _training_rows("explained"))


@functools.cache
def choice() -> tuple[Question, ...]:
    """Return four-choice questions about items that no row of `short` and `explained` asks."""
    return tuple(row.value for row in _choice_rows())


@functools.cache
def preferences() -> tuple[Preference, ...]:
    """Return the prompts of `short`, each with its answer preferred to the answer of another prompt."""
    rows = short()
    return tuple(
        Preference(prompt_text(row), row.output, other.output)
        for row, other in zip(rows, (*rows[1:], rows[0]), strict=True)
        if row.output != other.output
    )


def training_keys() -> frozenset[str]:
    """Return the keys of everything that `short` and `explained` ask."""
    return frozenset(key for style in get_args(Style) for row in _training_rows(style) for key in row.keys)


def choice_keys() -> frozenset[str]:
    """Return the keys of everything that `choice` asks; none of them is a training key."""
    return frozenset(key for row in _choice_rows() for key in row.keys)
