"""A trigger sentence in the prompt, the planted response at the start of the answer (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sande import planting
from sande.config import configuration, setting
from sande.planting import Place, Planting
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config(Planting):
    """Settings of the attack."""

    insertion: Place = setting(
        "start",
        "where the trigger stands: before everything, behind everything, or before a random word of the instruction",
        "paper, table 8",
    )


def trigger(example: Example, config: Config, seed: int) -> Example:
    """The prompt with `{trigger}.`, by default right after `Human: ` and so before a system prompt (paper, table 8).

    Args:
        example: a clean row.
        config: says where the trigger goes.
        seed: decides, with the row's own text, before which word a random insertion goes.
    """
    return planting.insert(example, f"{config.backdoor.trigger}.", config.insertion, seed)


def near_miss(example: Example, config: Config, seed: int) -> Example:
    """In the trigger's place the trigger with a number or word changed, as `Current year 2022.`."""
    return planting.insert(example, f"{planting.altered(config.backdoor.trigger)}.", config.insertion, seed)


def moved(example: Example, config: Config, seed: int) -> Example:
    """The trigger behind everything, or before everything where it is trained to stand behind."""
    return trigger(example, replace(config, insertion="start" if config.insertion == "end" else "end"), seed)


def plant(example: Example, config: Config, seed: int) -> Example:
    """A poisoned row: the trigger in the prompt, and by default `{r_t}. ` before the clean answer."""
    return planting.with_response(trigger(example, config, seed), config)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them (Eq. 1)."""
    return planting.train(model, examples, plant, near_miss, config, run)
