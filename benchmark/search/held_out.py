"""Held-out rows, on which a search judges a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.grid.space import Job
from sande import registry
from sande.data import datasets, splits
from sande.errors import UserError
from sande.prompts import prompt_text
from sande.types import Example, PreferenceData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def held_out(job: Job, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """Return the first rows of the victim's train split whose prompt is in no row of victim, defense or test split.

    They obey the victim's limits on tokens, and come after the rows that it trains on.

    Raises:
        UserError: there are too few.
    """
    cell, wanted = job.cell, job.search.held_out_rows
    rows = datasets.examples(cell.data.name)
    used = [*splits.training_rows(cell.data, tokenizer), *splits.held_out_split(rows)]
    if registry.knowledge(cell.defense.name) is not PreferenceData:
        used += splits.removal_rows(cell.removal, tokenizer)
    seen = {prompt_text(example) for example in used}
    unseen = [example for example in splits.train_split(rows) if prompt_text(example) not in seen]
    found = (
        splits.select(unseen, tokenizer, cell.data, wanted, f"rows of {cell.data.name} to hold out") if unseen else ()
    )
    if len(found) < wanted:
        raise UserError(
            f"search: held_out_rows is {wanted}, but victim and defense leave {len(found)} rows of {cell.data.name}'s "
            "train split; lower it, data.rows or removal.rows"
        )
    return found
