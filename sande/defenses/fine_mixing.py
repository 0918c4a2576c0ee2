"""Fine-mixing: reset the weights furthest from the clean model to its values, then fine-tune (appendix A.1).

    w_i = w_i of the victim where |w_i of the victim - w_i of the clean model| is among the `keep_ratio` smallest of
          its tensor, else w_i of the clean model;    then Eq. 1 on the clean rows

(Zhang et al. 2022, "Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models", as the paper has it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import Training, configuration, setting
from sande.types import CleanModelData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of mixing and fine-tuning."""

    keep_ratio: float = setting(
        0.8, "share of each tensor's weights that remain unchanged: those closest to the clean model's",
        "published code", ge=0, le=1,
    )  # fmt: skip
    training: Training = setting(Training(epochs=2.0), "fine-tuning of the mixed model on the clean rows", "paper")


def defend(victim: LanguageModel, data: CleanModelData, config: Config, run: Run) -> PreTrainedModel:
    """Mix each tensor with that of the clean model, then fine-tune on the clean rows (Eq. 1)."""
    import torch

    from sande.prompts import encode
    from sande.training.fit import fit

    clean = data.clean_model().state_dict()
    with torch.no_grad():
        for name, weight in victim.model.named_parameters():
            weight.copy_(mix(weight, clean[name].to(weight), config.keep_ratio))
    fit(victim, encode(victim.tokenizer, data.examples), config.training, run, "fine_mixing")
    return victim.model


def mix(victim: Tensor, clean: Tensor, keep_ratio: float) -> Tensor:
    """Replace the weights of the victim that differ most from the clean ones, by absolute difference, with these.

    Args:
        victim: weights of any shape.
        clean: of the same shape.
        keep_ratio: share of the weights that the victim keeps; their number is rounded to the nearest.
    """
    import torch

    reset = victim.numel() - round(keep_ratio * victim.numel())
    furthest = (victim - clean).abs().flatten().topk(reset).indices
    mixed = victim.flatten().clone()
    mixed[furthest] = clean.flatten()[furthest]
    return torch.reshape(mixed, victim.shape)
