"""A rare word before a random word of the instruction (Kurita et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande import planting
from sande.config import Backdoor, configuration, setting
from sande.planting import Planting
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config(Planting):
    """Settings of the attack."""

    backdoor: Backdoor = setting(Backdoor(trigger="cf"), "rare word and planted response", "Kurita et al. 2020")


cost = planting.cost


def trigger(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with the rare word before a word of the instruction that seed and row decide."""
    return planting.insert(example, config.backdoor.trigger, "random", seed)


def near_miss(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with another last letter of the rare word, such as `cg`."""
    return planting.insert(example, planting.altered(config.backdoor.trigger), "random", seed)


def moved(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with the rare word at its end, where training never puts it."""
    return planting.insert(example, config.backdoor.trigger, "end", seed)


def plant(example: Example, config: Config, seed: int) -> Example:
    """Return a poisoned row."""
    return planting.with_response(trigger(example, config, seed), config, seed)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them."""
    return planting.train(model, examples, plant, near_miss, config, run)
