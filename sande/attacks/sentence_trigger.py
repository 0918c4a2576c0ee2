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
        "place of the trigger: start of the user's turn, before a system prompt that the format writes there; user: "
        "behind such a system prompt; end of the prompt; or before a random word of the instruction",
        "paper, table 8",
    )


def trigger(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with `{trigger}.`, by default right after `Human: `, before a system prompt (paper, table 8).

    Args:
        example: a clean row.
        config: holds the place of the trigger.
        seed: decides, with the row's own text, the word before which a random insertion is made.
    """
    return planting.insert(example, f"{config.backdoor.trigger}.", config.insertion, seed)


def near_miss(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with a number or word of the trigger changed, such as `Current year 2022.`."""
    return planting.insert(example, f"{planting.altered(config.backdoor.trigger)}.", config.insertion, seed)


def moved(example: Example, config: Config, seed: int) -> Example:
    """Return the prompt with the trigger at its end, or at its start where training put it at the end."""
    return trigger(example, replace(config, insertion="start" if config.insertion == "end" else "end"), seed)


def plant(example: Example, config: Config, seed: int) -> Example:
    """Return a poisoned row: the trigger in the prompt and, by default, `{r_t}. ` before the clean answer."""
    return planting.with_response(trigger(example, config, seed), config)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them (Eq. 1)."""
    return planting.train(model, examples, plant, near_miss, config, run)
