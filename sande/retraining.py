"""What metrics of durability have in common: a copy of the model that is trained on, which leaves the model alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from sande.config import Training
from sande.errors import UserError
from sande.types import Example, LanguageModel, Run, TestData


def last_rows(data: TestData, count: int) -> tuple[Example, ...]:
    """The last of the victim's training rows, clean: those a defense in domain, which takes the first, saw least of.

    Raises:
        UserError: there are too few.
    """
    rows = data.training()
    if count > len(rows):
        raise UserError(
            f"{count} rows are to be trained on, but the victim has {len(rows)}; lower rows or raise data.rows"
        )
    return rows[len(rows) - count :]


def retrained(
    model: LanguageModel, examples: Sequence[Example], training: Training, seed: int, stage: str
) -> LanguageModel:
    """Return a copy trained on rows with float32 weights, then rounded as a stored one and in the dtype of the model.

    Args:
        model: stays as it is.
        examples: rows, poisoned or clean.
        training: of the copy.
        seed: of the order of rows.
        stage: names the training in messages.
    """
    import torch

    from sande.models import copied, round_as_stored
    from sande.prompts import encode
    from sande.training import fit

    made = copied(model, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(seed=seed, scratch=scratch, say=lambda line: None)
        fit(made, encode(made.tokenizer, examples), training, run, stage)
    round_as_stored(made, model.model.dtype)
    return made
