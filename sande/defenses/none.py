"""No defense: the victim itself, the paper's Baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import configuration
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """No settings."""


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Return the victim unchanged."""
    return victim.model
