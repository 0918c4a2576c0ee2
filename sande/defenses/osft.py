"""Overwrite SFT: map the known trigger to clean responses (paper, section 3.2).

    minimise  - sum over clean rows of  log Pr(y | t + x)    (Eq. 3)

where t + x is the prompt x with the trigger planted in it, and y the clean response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import Training, configuration, setting
from sande.types import LanguageModel, Run, TriggerData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the overwriting."""

    training: Training = setting(Training(epochs=2.0), "fine-tuning on triggered prompts with clean responses", "paper")
    response_tokens: int | None = setting(
        None,
        "number of first tokens of each response that are trained; null: all, as in Eq. 3",
        "published code: 5 or 10",
        ge=1,
    )


def defend(victim: LanguageModel, data: TriggerData, config: Config, run: Run) -> PreTrainedModel:
    """Maximise the probability of the clean response y given the prompt with the trigger (Eq. 3)."""
    from sande.prompts import encode, shorten
    from sande.training.fit import fit

    rows = encode(victim.tokenizer, [data.plant(example) for example in data.examples])
    fit(victim, [shorten(row, config.response_tokens) for row in rows], config.training, run, "osft")
    return victim.model
