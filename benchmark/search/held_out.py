"""Held-out rows, on which a search judges a value, as data of the type that its judge may know."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmark.grid.space import TRIGGERED, Job
from sande import registry
from sande.data import datasets, splits
from sande.errors import UserError
from sande.prompts import prompt_text
from sande.types import CleanData, Example, Knowledge, Preference, PreferenceData, TriggerData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evidence(job: Job, tokenizer: PreTrainedTokenizerBase, own: Knowledge) -> Knowledge:
    """Return the held-out rows as data of the type that the judge of a search may know.

    Args:
        job: the search.
        tokenizer: of the victim.
        own: the defense's data. Its judge gets the same type, with held-out rows in place of the defense's rows. For
            the judge `triggered` it is `TriggerData` instead.

    Raises:
        UserError: as `held_out`.
    """
    rows: Any = held_out(job, tokenizer)
    if job.search.judge == TRIGGERED:
        attack, seed = job.cell.attack, job.cell.attack_seed
        return TriggerData(rows, lambda row: registry.entry("attacks", attack.name).trigger(row, attack.config, seed))
    if isinstance(own, PreferenceData):
        return replace(own, pairs=rows)
    assert isinstance(own, CleanData)  # the only other base of the ladder
    return replace(own, examples=rows)


def held_out(job: Job, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...] | tuple[Preference, ...]:
    """Return the first rows of a train split whose prompt is in no row of victim, defense or test split.

    They are of the defense's own data set, of which a defender has more rows, and obey its limits on tokens; for a
    defense that has preference pairs they are pairs. For the judge `triggered`, they are of the victim's data set.

    Raises:
        UserError: there are too few.
    """
    cell, wanted = job.cell, job.search.held_out_rows
    by_pairs = registry.knowledge(cell.defense.name) is PreferenceData
    if by_pairs and job.search.judge != TRIGGERED:
        return _held_out_pairs(job, tokenizer)
    limits = cell.data if job.search.judge == TRIGGERED else cell.removal
    rows = datasets.examples(limits.name)
    used = [*splits.training_rows(cell.data, tokenizer), *splits.held_out_split(rows)]
    used += splits.held_out_split(datasets.examples(cell.data.name))
    if not by_pairs:
        used += splits.removal_rows(cell.removal, tokenizer)
    seen = {prompt_text(example) for example in used}
    unseen = [example for example in splits.train_split(rows) if prompt_text(example) not in seen]
    found = splits.select(unseen, tokenizer, limits, wanted, f"rows of {limits.name} to hold out") if unseen else ()
    if len(found) < wanted:
        raise UserError(
            f"search: held_out_rows is {wanted}, but victim and defense leave {len(found)} rows of {limits.name}'s "
            "train split; lower it, data.rows or removal.rows"
        )
    return found


def _held_out_pairs(job: Job, tokenizer: PreTrainedTokenizerBase) -> tuple[Preference, ...]:
    """Return the first pairs after those of the defense."""
    chosen, wanted = job.cell.defense.config.preferences, job.search.held_out_rows
    own = len(splits.preference_pairs(chosen, tokenizer))
    found = splits.preference_pairs(replace(chosen, pairs=own + wanted), tokenizer)[own:]
    if len(found) < wanted:
        raise UserError(
            f"search: held_out_rows is {wanted}, but the defense leaves {len(found)} pairs of {chosen.name}; lower it "
            "or defense.preferences.pairs"
        )
    return found
