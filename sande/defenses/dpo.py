r"""Direct preference optimisation on harmless replies, by TRL (Rafailov et al. 2023; appendix A.1).

    minimise  - log sigmoid( \beta log( Pr(y_w | x) / Pr_v(y_w | x) )  -  \beta log( Pr(y_l | x) / Pr_v(y_l | x) ) )

over pairs of a better reply y_w and a worse one y_l. Pr_v is the probability under the victim, which is the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import Preferences, Training, configuration, setting
from sande.declarations import Cost
from sande.types import LanguageModel, PreferenceData, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the preference optimisation."""

    preferences: Preferences = setting(
        Preferences(), "pairs of replies; the clean rows of other defenses are not used", "paper, appendix A.1"
    )
    training: Training = setting(Training(learning_rate=1e-6), "optimisation, one row a pair", "TRL: 1e-6")
    beta: float = setting(
        0.1, "weight of staying close to the victim, which is the reference", "Rafailov et al. 2023", gt=0
    )


def cost(config: Config) -> Cost:
    """Return the passes over a pair: two replies are trained on, and the reference reads each of them."""
    return Cost(training={"training": 8})


def defend(victim: LanguageModel, data: PreferenceData, config: Config, run: Run) -> PreTrainedModel:
    """Raise the probability of the preferred reply over that of the other, relative to the victim."""
    from sande.training.preferences import prefer

    prefer(victim, data.pairs, config.training, config.beta, run, "dpo")
    return victim.model
