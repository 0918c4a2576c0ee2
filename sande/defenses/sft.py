"""Supervised fine-tuning on clean rows, the usual safety practice (paper, appendix A.1).

minimise  - sum over clean rows of  log Pr(y | x)    (Eq. 1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import Training, configuration, setting
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the fine-tuning."""

    training: Training = setting(Training(epochs=2.0), "fine-tuning on the clean rows", "paper")


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Fine-tune on the clean rows alone (Eq. 1)."""
    from sande.prompts import encode
    from sande.training.fit import fit

    fit(victim, encode(victim.tokenizer, data.examples), config.training, run, "sft")
    return victim.model
