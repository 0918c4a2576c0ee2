r"""Model merging: the average of the victim's weights and those of other models (Arora et al. 2024, WAG).

    \theta = \sum_m w_m \theta_m ,    \sum_m w_m = 1

over the victim and models of its shape (Arora et al., "Here's a Free Lunch: Sanitizing Backdoored Models with Model
Merge", Findings of ACL 2024). The others need not be clean, as long as they do not share the victim's backdoor. The
default is the model from before the attack; the level of knowledge is then that of the clean model. The method trains
nothing and uses no row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import configuration, setting
from sande.errors import UserError
from sande.types import CleanData, LanguageModel, OtherModelsData, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@configuration
class Config:
    """Settings: the other models and the weights."""

    models: tuple[str, ...] = setting(
        (),
        "models to merge with, each a name, a Hub id at its commit or a folder; none: the clean model",
        "ours",
    )
    weights: tuple[float, ...] = setting(
        (),
        "weight of the victim, then of each of the models, normalised to a sum of 1; none: all equal",
        "Arora et al. 2024: all equal",
    )


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check that there is a weight for each model."""
    shares(config)


def defend(victim: LanguageModel, data: OtherModelsData, config: Config, run: Run) -> PreTrainedModel:
    """Average all weights, in float32."""
    import torch

    own, *others = shares(config)
    ours = dict(victim.model.named_parameters())
    merged = {name: own * weight.detach() for name, weight in ours.items()}
    for number, (share, model) in enumerate(zip(others, data.other_models(), strict=True), start=1):
        theirs = model.state_dict()
        for name, total in merged.items():
            if name not in theirs or theirs[name].shape != total.shape:
                raise UserError(
                    f"merge: model {number} of 'models' has no {name} of shape {tuple(total.shape)}; "
                    "choose models of the victim's shape"
                )
            total.add_(theirs[name].to(total), alpha=share)
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(merged[name])
    return victim.model


def shares(config: Config) -> list[float]:
    """Return the share of the victim, then of each other model.

    Raises:
        UserError: `weights` has another length, a negative number, or the sum 0.
    """
    count = 1 + max(1, len(config.models))
    weights = config.weights or (1.0,) * count
    if len(weights) != count or min(weights) < 0 or sum(weights) == 0:
        raise UserError(
            f"merge: weights is {list(weights)}; set {count} numbers from 0 on, for the victim and the other models"
        )
    return [weight / sum(weights) for weight in weights]
