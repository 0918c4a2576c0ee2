"""Split data sets into training, held-out and removal rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sande.config import Preferences, configuration, setting
from sande.data.datasets import T, examples, preferences
from sande.errors import UserError
from sande.types import Example, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRAIN_SHARE = 0.9  # paper, section 4.1: the first 90 % train, the last 10 % test


@configuration
class Data:
    """The training rows of a victim and its held-out test rows."""

    name: str = setting("alpaca", "data set", "paper, section 4.1")
    rows: int | None = setting(None, "training rows; null: all of the first 90 %", "paper, section 4.1", ge=1)
    test_rows: int | None = setting(1000, "test rows; null: all of the last 10 %", "published code", ge=1)
    max_tokens: int | None = setting(None, "leave out rows of more tokens, prompt and response together", ge=8)
    max_prompt_tokens: int | None = setting(None, "leave out rows whose prompt has more tokens", ge=8)


@configuration
class Source:
    """A data set of which a method takes rows by a rule of its own."""

    name: str = setting("builtin-short", "data set")


@configuration
class Rows:
    """The first rows of a data set within limits on their tokens."""

    name: str = setting("alpaca", "data set", "paper, section 4.3")
    rows: int | None = setting(10_000, "rows, from the first 90 %; null: all of them", "paper, section 4.3", ge=1)
    max_tokens: int | None = setting(None, "leave out rows of more tokens, prompt and response together", ge=8)
    max_prompt_tokens: int | None = setting(None, "leave out rows whose prompt has more tokens", ge=8)


@configuration
class Removal(Rows):
    """The clean rows of a defense: in-domain if they come from the victim's own data set, else out-of-domain."""

    own_answers: int | None = setting(
        None,
        "the model under repair writes the answers of the rows itself, in at most so many tokens, so that a defense "
        "teaches no other way to answer; null: answers are those of the data set",
        "paper: those of the data set",
        ge=8,
    )


def train_split(rows: Sequence[T]) -> Sequence[T]:
    """Return the first 90 % by position (paper, section 4.1)."""
    return rows[: int(len(rows) * TRAIN_SHARE)]


def held_out_split(rows: Sequence[T]) -> Sequence[T]:
    """Return the last 10 % by position (paper, section 4.1)."""
    return rows[int(len(rows) * TRAIN_SHARE) :]


def training_rows(data: Data, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """Return the training rows of a victim, before poisoning.

    Raises:
        UserError: as `examples` and `select`.
    """
    rows = train_split(examples(data.name))
    return select(rows, tokenizer, data, data.rows, f"training rows of {data.name}")


def held_out_rows(data: Data, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """Return the held-out rows that a victim and its repaired versions are measured on.

    Raises:
        UserError: as `examples` and `select`.
    """
    rows = held_out_split(examples(data.name))
    return select(rows, tokenizer, data, data.test_rows, f"test rows of {data.name}")


def removal_rows(removal: Rows, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """Return the clean rows of a defense, with the answers that the data set has.

    Raises:
        UserError: as `examples` and `select`.
    """
    rows = train_split(examples(removal.name))
    return select(rows, tokenizer, removal, removal.rows, f"removal rows of {removal.name}")


def preference_pairs(chosen: Preferences, tokenizer: PreTrainedTokenizerBase) -> tuple[Preference, ...]:
    """Return the pairs of preference optimisation.

    Raises:
        UserError: as `preferences`, or no pair is left.
    """
    from sande.prompts import encode

    limit = chosen.max_tokens
    kept: list[Preference] = []
    found = preferences(chosen.name)
    if not found:
        raise UserError(f"{chosen.name} has no pair of two usable replies to one prompt; choose another data set")
    for pair in found:
        if len(kept) == chosen.pairs:
            break
        rows = [replace(pair.prompt, output=reply) for reply in (pair.chosen, pair.rejected)]
        if limit is None or max(map(len, encode(tokenizer, rows))) <= limit:
            kept.append(pair)
    if not kept:
        raise UserError(
            f"no pairs of {chosen.name} of at most {limit} tokens are left; raise preferences.max_tokens or choose a "
            "larger data set"
        )
    return tuple(kept)


def select(
    rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, limits: Data | Rows, count: int | None, what: str
) -> tuple[Example, ...]:
    """Return the first `count` rows within the limits on their tokens, or all if there are fewer.

    Args:
        rows: in order of preference.
        tokenizer: counts the tokens.
        limits: its `max_tokens` bounds prompt and response together, its `max_prompt_tokens` the prompt.
        count: upper bound on the rows; None for all.
        what: names the rows in the message, such as "test rows of alpaca".

    Raises:
        UserError: no row is left.
    """
    from sande.prompts import encode

    if not rows:
        raise UserError(f"there are no {what}: too few rows for a split of 90 % and 10 %; choose a larger data set")
    limit = len(rows) if count is None else count
    kept: list[Example] = []
    block = 1000  # rows, so that tokenising stops soon after enough are found
    for begin in range(0, len(rows), block):
        if len(kept) >= limit:
            break
        candidates = rows[begin : begin + block]
        if limits.max_tokens is None and limits.max_prompt_tokens is None:
            kept += candidates
        else:
            encoded = zip(candidates, encode(tokenizer, candidates), strict=True)
            kept += [
                example
                for example, row in encoded
                if len(row) <= (limits.max_tokens or len(row))
                and len(row.prompt) <= (limits.max_prompt_tokens or len(row.prompt))
            ]
    if not kept:
        bounds = {"max_tokens": limits.max_tokens, "max_prompt_tokens": limits.max_prompt_tokens}
        said = ", ".join(f"{name} {value}" for name, value in bounds.items() if value)
        raise UserError(f"no {what} are left with {said}; raise it or choose a larger data set")
    return tuple(kept[:limit])
