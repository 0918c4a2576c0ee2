"""Clean rows whose answers the model under repair writes itself.

    y_x = the greedy answer of the victim to the prompt x, without a trigger

A defense that trains on them teaches no other way to answer, however far their prompts are from the model's own data.
So their domain costs it little, and the whole gradient goes to what the defense is for. Only prompts are needed.
Fine-tuning on a model's own answers is that of Yang et al., "Self-Distillation Bridges Distribution Gap in Language
Model Fine-Tuning" (arXiv 2402.13669), which lets the model reword given answers; here it sees prompts alone.
"""

from __future__ import annotations

from dataclasses import replace

from sande.data.splits import Removal, removal_rows
from sande.errors import UserError
from sande.types import Example, LanguageModel

BATCH = 100  # prompts decoded together


def clean_rows(victim: LanguageModel, removal: Removal) -> tuple[Example, ...]:
    """Return the clean rows of a defense, with the data set's answers, or with own ones where `own_answers` asks so.

    Rows whose own answer is empty, or longer than `own_answers` tokens, are left out: cut ones would teach to stop.

    Raises:
        UserError: as `removal_rows`, or no own answer is short enough.
    """
    from sande.inference.generation import greedy
    from sande.prompts import encode, encode_prompts

    rows = removal_rows(removal, victim.tokenizer)
    most = removal.own_answers
    if most is None:
        return rows
    texts = greedy(victim, encode_prompts(victim.tokenizer, rows), most + 1, BATCH)
    written = [replace(row, output=text.strip(), answers=()) for row, text in zip(rows, texts, strict=True)]
    tokens = [len(row.response) for row in encode(victim.tokenizer, written)]
    kept = [row for row, count in zip(written, tokens, strict=True) if row.output and count <= most]
    if not kept:
        raise UserError(
            f"removal.own_answers: none of {len(rows)} answers ends within {most} tokens; set it higher, or to null"
        )
    return tuple(kept)
