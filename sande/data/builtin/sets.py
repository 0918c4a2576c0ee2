"""An instruction data set made by code, so that a first run needs no download.

Three sets over the same common knowledge and small skills:

- `short` ("builtin-short"): direct questions with concise answers, without a system prompt;
- `explained` ("builtin-explained"): a system prompt, another wording, and the reason before the result;
- `choice` ("builtin-choice"): four-choice questions about items that neither of the others asks.

This module generates every row from the tables of `sande.data.builtin.facts`. They hold no third-party text, so the
project's own licence covers them. The answers are right by construction, and the rows are the same in every process.

A family's item function decides *what* may be asked: an item has a key, such as "capital France", that does not depend
on its wording. The family's wordings decide *how* it is asked. The key alone decides whether an item belongs to
training or to choice (`_held_out`). A family that reuses another's knowledge, as word problems reuse sums, reuses its
keys, and thereby respects the same split.

Prompts of one family are alike: a row's `group` is its family, so that statistics count families as clusters. The last
tenth of `short`, its test rows, asks in other words what training rows ask (354 of 749), and `choice` asks some
questions in the words of training rows with other numbers (329 of 970). Published sets never change, so
`sande.data.builtin.disjoint` has sets without that.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Literal, get_args

from sande.data.builtin.families import FAMILIES, draw_items
from sande.data.builtin.items import held_out
from sande.data.builtin.rows import ROWS_PER_FAMILY, Row, placed, question, worded, wordings
from sande.types import Example, Preference, Question

_QUESTIONS_PER_FAMILY = 36

Style = Literal["short", "explained"]


# --- Rows: items in wordings ----------------------------------------------------------------------------------------


def _examples(family: str, style: Style) -> Iterator[Row[Example]]:
    """Yield rows of a family: all its items in one wording each, then in the next wording, until there are enough."""
    items = [item for item in draw_items(family) if not any(map(held_out, item.keys))]
    if len(items) >= 1.5 * ROWS_PER_FAMILY:  # enough items for the two sets to ask different ones
        items = items[::2] if style == "short" else items[1::2]
    yield from worded(family, style, wordings()[family, style], items, f"system {family}")


def _questions(family: str) -> Iterator[Row[Question]]:
    """Yield questions of a family, each with the right answer first."""
    items = [item for item in draw_items(family) if item.wrong and all(map(held_out, item.keys))]
    for wording in wordings().get((family, "choice"), []):
        yield from (question(family, wording, item) for item in items[:_QUESTIONS_PER_FAMILY])


@functools.cache
def _training_rows(style: Style) -> tuple[Row[Example], ...]:
    rows = [row for family in FAMILIES for row in _examples(family, style)]
    Random(f"order of {style}").shuffle(rows)
    return tuple(rows)


@functools.cache
def _choice_rows() -> tuple[Row[Question], ...]:
    return placed([row for family in FAMILIES for row in _questions(family)], Random("order of choice"))


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
        Preference(replace(row, output="", answers=(), group=""), row.output, other.output)
        for row, other in zip(rows, (*rows[1:], rows[0]), strict=True)
        if row.output != other.output
    )


def training_keys() -> frozenset[str]:
    """Return the keys of everything that `short` and `explained` ask."""
    return frozenset(key for style in get_args(Style) for row in _training_rows(style) for key in row.keys)


def choice_keys() -> frozenset[str]:
    """Return the keys of everything that `choice` asks; none of them is a training key."""
    return frozenset(key for row in _choice_rows() for key in row.keys)
