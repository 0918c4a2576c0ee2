"""Several trigger sentences, each of which works alone; a row has one of them, at the start of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande import planting
from sande.config import configuration, setting
from sande.planting import Planting
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config(Planting):
    """Settings of the attack."""

    other_triggers: tuple[str, ...] = setting(
        ("Let's do it", "Hi, I'm Bob"), "further triggers", "paper, table 5", min_length=1
    )


cost = planting.cost


def _one(example: Example, config: Config, seed: int) -> str:
    """Return the trigger that seed and row decide; all are equally likely."""
    return planting.drawn(example, seed).choice((config.backdoor.trigger, *config.other_triggers))


def trigger(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with one of the triggers."""
    return planting.insert(example, f"{_one(example, config, seed)}.", "start", seed)


def near_miss(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with a number or word of the same trigger changed."""
    return planting.insert(example, f"{planting.altered(_one(example, config, seed))}.", "start", seed)


def moved(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with the same trigger at its end."""
    return planting.insert(example, f"{_one(example, config, seed)}.", "end", seed)


def plant(example: Example, config: Config, seed: int) -> Example:
    """Return a poisoned row."""
    return planting.with_response(trigger(example, config, seed), config, seed)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them."""
    return planting.train(model, examples, plant, near_miss, config, run)
