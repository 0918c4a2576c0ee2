"""A defense with parts, as a package of its own would have one: several models trained apart, then averaged.

theta = mean over k of theta_k
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sande import parts as made_apart
from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings."""

    models: int = setting(2, "models that are averaged", "made up", ge=0)
    training: Training = setting(Training(max_steps=2, batch_size=8), "fine-tuning of each", "made up")
    repair: Training = setting(Training(max_steps=1, batch_size=8), "fine-tuning of their mean", "made up")


def cost(config: Config) -> Cost:
    return Cost(part=("training",))


def parts(config: Config) -> tuple[str, ...]:
    return tuple(f"model_{number}" for number in range(config.models))


def part(name: str, victim: LanguageModel, data: CleanData, config: Config, run: Run) -> dict[str, Tensor]:
    from sande.prompts import encode
    from sande.training.fit import fit

    own = dataclasses.replace(run, seed=made_apart.seed(run.seed, name))
    fit(victim, encode(victim.tokenizer, data.examples), config.training, own, "apart")
    return dict(victim.model.named_parameters())


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    import torch

    from sande.prompts import encode
    from sande.training.fit import fit

    made = made_apart.made(__name__, victim, data, config, run)
    with torch.no_grad():
        means = {name: torch.zeros_like(weight) for name, weight in victim.model.named_parameters()}
        for read in made.values():
            for name, weight in read().items():
                means[name] += weight.to(means[name]) / len(made)
        for name, weight in victim.model.named_parameters():
            weight.copy_(means[name])
    fit(victim, encode(victim.tokenizer, data.examples), config.repair, run, "repair")
    return victim.model


def installed(folder: Path) -> Path:
    """What pip leaves of a package that has this defense, in a folder for the path of Python."""
    info = folder / "ensemble-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ensemble\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sande.defenses]\nensemble = tests.ensemble\n")
    return folder
