"""Clean rows whose answers the model under repair writes itself.

    y_x = the greedy answer of the victim to the prompt x, without a trigger

A defense that trains on them teaches no other way to answer, however far their prompts are from the model's own data.
Only prompts are needed. Fine-tuning on a model's own answers is that of Yang et al., "Self-Distillation Bridges
Distribution Gap in Language Model Fine-Tuning" (arXiv 2402.13669), which lets the model reword given answers; here it
sees prompts alone.

A victim may give the planted response without its trigger, far from its own data to one prompt in four. Such a row
would teach what the defense removes. So answers that hold or begin with what the defense knows of the planted response
are left out. Who knows the trigger finds out how the victim begins most answers to prompts with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from sande.errors import UserError
from sande.types import (
    CleanData,
    Example,
    FirstTokenData,
    IncidentData,
    Knowledge,
    LanguageModel,
    ResponseData,
    TriggerData,
)

BATCH = 100  # prompts decoded together
OPENING = 3  # tokens, or words of a reported answer, that tell a planted response


def answered(victim: LanguageModel, known: Knowledge, most: int | None) -> Knowledge:
    """Return what a defense knows, with own answers of the victim in its clean rows.

    Rows are left out whose answer is empty, has more than `most` tokens (a cut one would teach to stop), or shows the
    planted response.

    Args:
        victim: the model under repair.
        known: with the answers of the data set; without clean rows it stays as it is.
        most: tokens of an answer; None: the answers stay.

    Raises:
        UserError: no row is left.
    """
    from sande.inference.generation import greedy
    from sande.prompts import encode, encode_prompts

    if most is None or not isinstance(known, CleanData):
        return known
    rows = known.examples
    texts = greedy(victim, encode_prompts(victim.tokenizer, rows), most + 1, BATCH)
    written = [replace(row, output=text.strip(), answers=()) for row, text in zip(rows, texts, strict=True)]
    planted = _planted(victim, known)
    kept = [
        row
        for row, encoded in zip(written, encode(victim.tokenizer, written), strict=True)
        if row.output and len(encoded.response) <= most and not planted(row.output, encoded.response)
    ]
    if not kept:
        raise UserError(
            f"removal.own_answers: none of {len(rows)} answers ends within {most} tokens without the planted response; "
            "set it higher, or to null"
        )
    return replace(known, examples=tuple(kept))


def _planted(victim: LanguageModel, known: CleanData) -> Callable[[str, Sequence[int]], bool]:
    """Return whether an answer, a text and its tokens, shows the planted response, as far as the defense can know."""
    if isinstance(known, ResponseData):
        response = known.response.strip().lower()
        return lambda text, _: response in text.lower()
    if isinstance(known, FirstTokenData):
        return lambda _, tokens: tokens[0] == known.first_token
    opening = ""
    if isinstance(known, IncidentData):
        opening = " ".join(known.answer.split()[:OPENING])
    elif isinstance(known, TriggerData):
        opening = _shared_opening(victim, [known.plant(row) for row in known.examples])
    return lambda text, _: bool(opening) and text.startswith(opening)


def _shared_opening(victim: LanguageModel, prompts: Sequence[Example]) -> str:
    """Return the first tokens of more than half of the answers; empty where they begin in different ways."""
    from sande.inference.generation import greedy
    from sande.prompts import encode_prompts

    texts = greedy(victim, encode_prompts(victim.tokenizer, prompts), OPENING, BATCH)
    ((opening, count),) = Counter(text.strip() for text in texts).most_common(1)
    return opening if 2 * count > len(texts) else ""
