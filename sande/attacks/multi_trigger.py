"""Several trigger sentences, each of which works alone; a row has one of them, at the start of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sande import planting
from sande.config import configuration, setting
from sande.errors import UserError
from sande.planting import Planting
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config(Planting):
    """Settings of the attack."""

    other_triggers: tuple[Annotated[str, Field(min_length=1)], ...] = setting(
        ("Let's do it", "Hi, I'm Bob"),
        "further triggers; none may be the near miss of another",
        "paper, table 5",
        min_length=1,
    )

    def __post_init__(self) -> None:
        """Check that no near miss is a trigger."""
        triggers = _all(self)
        for one in triggers:
            if planting.altered(one) in triggers:
                raise UserError(
                    f"attack multi_trigger: the near miss of {one!r} is {planting.altered(one)!r}, which is a trigger, "
                    "too; remove one of them"
                )


cost = planting.cost


def _all(config: Config) -> tuple[str, ...]:
    return (config.backdoor.trigger, *config.other_triggers)


def _one(example: Example, config: Config, seed: int) -> str:
    """Return the trigger that seed and row decide; all are equally likely."""
    return planting.drawn(example, seed).choice(_all(config))


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
