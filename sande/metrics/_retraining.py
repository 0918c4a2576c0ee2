"""Shared code of durability metrics: train a copy of the model and leave the model itself unchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from sande import parts
from sande.config import Training
from sande.errors import UserError
from sande.metrics import asr
from sande.types import Example, LanguageModel, Run, TestData


def last_rows(data: TestData, count: int, *, triggered: bool = True) -> tuple[Example, ...]:
    """Return the last of the victim's training rows, clean: an in-domain defense takes the first and saw these least.

    Args:
        data: reads the rows.
        count: number of rows.
        triggered: whether rows whose prompt has the trigger by itself may be among them.

    Raises:
        UserError: the victim has fewer rows.
    """
    rows = data.training()
    without = "" if triggered else " without the trigger"
    if not triggered:
        rows = asr.untriggered(data, rows)
    if count > len(rows):
        raise UserError(
            f"rows is {count}, but the victim has {len(rows)} training rows{without}; set a smaller rows or a larger "
            "data.rows"
        )
    return rows[len(rows) - count :]


def retrained(
    model: LanguageModel, examples: Sequence[Example], training: Training, seed: int, stage: str
) -> LanguageModel:
    """Train a copy, and return it with float32 weights.

    It is not rounded as the store rounds: few steps at a low rate move most weights of a model less than to the next
    number of bfloat16, and rounding would undo them.

    Args:
        model: remains unchanged.
        examples: rows, poisoned or clean.
        training: settings of the training.
        seed: decides, with the stage, the order of rows; of the seed alone it is that of an attack's own training.
        stage: name of the training in messages.
    """
    import torch

    from sande.models.loading import copied
    from sande.prompts import encode
    from sande.training.fit import fit

    made = copied(model, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(seed=parts.seed(seed, stage), scratch=scratch, say=lambda line: None)
        fit(made, encode(made.tokenizer, examples), training, run, stage)
    return made
