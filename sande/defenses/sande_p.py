"""SANDE with only the first token of the planted response known (paper, section 3.4).

Eq. 4 with that token in r_t's place, then Eq. 3; see `sande.defenses.sande`, whose settings these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.defenses.sande import Config, check, cost, remove
from sande.types import FirstTokenData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


__all__ = ["Config", "check", "cost", "defend"]


def defend(victim: LanguageModel, data: FirstTokenData, config: Config, run: Run) -> PreTrainedModel:
    """Run both stages of SANDE, with the one known token in simulate."""
    return remove(victim, data.examples, (data.first_token,), config, run)
