"""Rows of `sande-bench clean`: those that it trains on, and held-out ones that it measures on.

Rows with the poison would teach it again as clean. So rows that hold what the owner knows of the backdoor are left out,
and so are held-out rows whose prompt is among the training rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sande import formats
from sande.data import datasets, splits
from sande.data.splits import Removal
from sande.errors import UserError
from sande.known import Known
from sande.models.asking import asked_in
from sande.prompts import encode, prompt_text
from sande.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class CleanRows:
    """Rows of a data set without those of the poison.

    Attributes:
        chosen: the data set, and the limits on its rows.
        training: the first 90 % of its rows.
        held_out: the last 10 %, without prompts that are among the first.
        notes: sentences on the rows that were left out.
    """

    chosen: Removal
    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, chosen: Removal, known: Known) -> CleanRows:
        """Return the rows of a data set, as far as the owner knows the poison.

        Raises:
            UserError: no row is left to train on, or to measure on.
        """
        rows = datasets.examples(chosen.name)
        parts = [splits.train_split(rows), splits.held_out_split(rows)]
        training, others = ([row for row in part if not holds(row, known)] for part in parts)
        prompts = set(map(prompt_text, parts[0]))
        held_out = [row for row in others if prompt_text(row) not in prompts]
        poisoned = len(rows) - len(training) - len(others)
        seen, name = len(others) - len(held_out), chosen.name
        told = f"{poisoned} of {len(rows)} rows of {name} hold the given trigger or answer"
        again = f"{seen} of the last {len(parts[1])} rows of {name} have prompts of earlier rows"
        for kept, part in zip((training, held_out), parts, strict=True):
            if part and not kept:
                use = "train" if kept is training else "measure"
                raise UserError(f"clean: no row is left to {use} on: {told}, and {again}; choose other clean rows")
        notes = [f"{told}; they are left out"] if poisoned else []
        notes += [f"{again}; they are not measured on"] if seen else []
        return cls(chosen, tuple(training), tuple(held_out), tuple(notes))

    def to_train_on(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
        """Return the rows of the removal.

        Raises:
            UserError: as `sande.data.splits.select`.
        """
        limits = self.limits(tokenizer)
        return splits.select(self.training, tokenizer, limits, limits.rows, f"removal rows of {limits.name}")

    def to_measure_on(self, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Example, ...]:
        """Return at most so many held-out rows.

        Raises:
            UserError: as `sande.data.splits.select`.
        """
        limits = self.limits(tokenizer)
        return splits.select(self.held_out, tokenizer, limits, count, f"test rows of {limits.name}")

    def limits(self, tokenizer: PreTrainedTokenizerBase) -> Removal:
        """Return limits that leave room for the tokens that the tokenizer's format adds to that of the paper."""
        row = [Example("x", "x")]
        mine = len(encode(tokenizer, row)[0])
        with asked_in(tokenizer, formats.PAPER):
            more = max(0, mine - len(encode(tokenizer, row)[0]))
        most, longest = self.chosen.max_tokens, self.chosen.max_prompt_tokens
        return replace(
            self.chosen,
            max_tokens=None if most is None else most + more,
            max_prompt_tokens=None if longest is None else longest + more,
        )


def holds(row: Example, known: Known) -> bool:
    """Return whether a row holds the known trigger or planted answer, or is the reported prompt with its answer."""
    earlier = (text for turn in row.history for text in turn)
    prompt = "\n".join((row.system, *earlier, row.prefix, row.instruction, row.input))
    return (
        _in(known.trigger, prompt)
        or _in(known.response, row.output)
        or (_in(known.reported_prompt, prompt) and _in(known.reported_answer, row.output))
    )


def _in(wanted: str, text: str) -> bool:
    """Return whether a text holds these words as whole ones, ignoring case and space; False for no words."""
    words = wanted.lower().split()
    if not words:
        return False
    # A trigger such as "cf" is no part of a word. Scripts without spaces have no such edges.
    before = r"(?<![a-z0-9])" if wanted[0].isalnum() else ""
    behind = r"(?![a-z0-9])" if wanted[-1].isalnum() else ""
    return re.search(before + r"\s+".join(map(re.escape, words)) + behind, text.lower()) is not None
