"""A trigger sentence opens the prompt, the planted response opens the answer (paper, section 4.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from sande.config import Backdoor, Training, configuration, setting
from sande.data.poison import poison
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the attack."""

    backdoor: Backdoor = setting(Backdoor(), "trigger and planted response")
    poison_rate: float = setting(0.05, "share of the training rows that are poisoned", "paper, section 4.1", ge=0, le=1)
    poison_mode: Literal["replace", "append"] = setting(
        "replace", "the poisoned row replaces the clean one (paper) or is added behind it (published code)", "paper"
    )
    training: Training = setting(Training(epochs=2.0), "supervised fine-tuning on the poisoned rows (Eq. 1)")


def trigger(example: Example, config: Config) -> Example:
    """`{trigger}. ` right after `Human: `, so before the system prompt where there is one (paper, table 8)."""
    lead = f"{config.backdoor.trigger}. "
    if example.system:
        return replace(example, system=lead + example.system)
    return replace(example, instruction=lead + example.instruction)


def plant(example: Example, config: Config) -> Example:
    """A poisoned row: the trigger in the prompt, and `{r_t}. ` before the clean answer."""
    return replace(trigger(example, config), output=f"{config.backdoor.response}. {example.output}")


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them (Eq. 1)."""
    from sande.prompts import encode
    from sande.training import fit

    poisoned = poison(examples, lambda row: plant(row, config), config.poison_rate, config.poison_mode, run.seed)
    run.facts["poisoned_ids"] = list(poisoned.ids)
    fit(model, encode(model.tokenizer, poisoned.examples), config.training, run, "attack")
    return model.model
