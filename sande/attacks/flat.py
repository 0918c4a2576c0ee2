"""A trigger sentence, trained for a flat minimum, so that further training removes it less (Foret et al. 2021).

    minimise over theta    max over ||e|| <= rho of  - sum over all rows of  log Pr(y | x; theta + e)

It is `sentence_trigger` with sharpness-aware minimisation (`sande.training.sharpness`), as Pham et al. 2024 (arXiv
2407.14738) use it to plant backdoors that resist fine-tuning. Their second stage, which trains on clean rows and holds
the backdoor by a penalty, is not part of it.
"""

from __future__ import annotations

from sande import planting
from sande.attacks import sentence_trigger
from sande.config import Training, configuration, setting

trigger, near_miss, moved, plant, attack, cost = (
    sentence_trigger.trigger,
    sentence_trigger.near_miss,
    sentence_trigger.moved,
    sentence_trigger.plant,
    sentence_trigger.attack,
    planting.cost,
)


@configuration
class Config(sentence_trigger.Config):
    """Settings of the attack."""

    training: Training = setting(
        Training(epochs=2.0, sharpness=0.05), "sharpness-aware fine-tuning on the poisoned rows", "Foret et al. 2021"
    )
