"""SANDE in rounds, with a certificate, where only the first token of the planted response is known.

Eq. 4 with that token in r_t's place, its test against single tokens that are as likely there, then Eq. 3; see
`sande.defenses.sande_rounds`, whose settings these are. A parrot makes most models say most single tokens, so the test
tells less than with all of r_t known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.defenses.sande_rounds import Config, check, cost, remove
from sande.types import FirstTokenData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


__all__ = ["Config", "check", "cost", "defend"]


def defend(victim: LanguageModel, data: FirstTokenData, config: Config, run: Run) -> PreTrainedModel:
    """Run the rounds with the one known token; `run.facts["certificate"]` has their evidence."""
    return remove(victim, data.examples, (data.first_token,), config, run)
