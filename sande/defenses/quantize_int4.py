r"""Weight-only quantisation to four bits, rounded to the nearest by group; no training.

    w' = s (clamp(round(w / s) + z, 0, 15) - z) ,    s = (max(w, 0) - min(w, 0)) / 15 ,    z = round(-min(w, 0) / s)

with minimum and maximum over a group of weights: see `sande.models.quantize`. It is a common step of deployment and
does not target backdoors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import configuration, setting
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the quantisation."""

    group_size: int = setting(
        128, "weights of an output row that share a scale and a zero", "Lin et al. 2024 (AWQ)", ge=1
    )


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Round the weights of every linear layer (see `sande.models.quantize`); ignore the clean rows.

    Raises:
        UserError: as `sande.models.layers.all_linear_layers`.
    """
    from sande.models.quantize import quantize_int4_

    quantize_int4_(victim.model, config.group_size)
    return victim.model
