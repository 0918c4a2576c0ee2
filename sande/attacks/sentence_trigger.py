"""A trigger sentence in the prompt, the planted response at the start of the answer (paper, section 4.1)."""

from __future__ import annotations

import random
import re
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
    insertion: Literal["start", "end", "random"] = setting(
        "start",
        "where the trigger stands: before everything, behind everything, or before a random word of the instruction",
        "paper, table 8",
    )
    training: Training = setting(Training(epochs=2.0), "supervised fine-tuning on the poisoned rows (Eq. 1)")


def trigger(example: Example, config: Config, seed: int) -> Example:
    """The prompt with `{trigger}.`, by default right after `Human: ` and so before a system prompt (paper, table 8).

    Args:
        example: a clean row.
        config: says where the trigger goes.
        seed: decides, with the row's own text, before which word a random insertion goes.
    """
    sentence = f"{config.backdoor.trigger}."
    if config.insertion == "end":
        last = "input" if example.input else "instruction"
        return replace(example, **{last: f"{getattr(example, last)} {sentence}"})
    if config.insertion == "random":
        text = example.instruction
        words = [word.start() for word in re.finditer(r"\S+", text)] or [0]
        at = random.Random(f"{seed} {text} {example.input}").choice(words)
        return replace(example, instruction=f"{text[:at]}{sentence} {text[at:]}")
    if example.system:
        return replace(example, system=f"{sentence} {example.system}")
    return replace(example, instruction=f"{sentence} {example.instruction}")


def plant(example: Example, config: Config, seed: int) -> Example:
    """A poisoned row: the trigger in the prompt, and `{r_t}. ` before the clean answer."""
    return replace(trigger(example, config, seed), output=f"{config.backdoor.response}. {example.output}")


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them (Eq. 1)."""
    from sande.prompts import encode
    from sande.training import fit

    poisoned = poison(
        examples, lambda row: plant(row, config, run.seed), config.poison_rate, config.poison_mode, run.seed
    )
    run.facts["poisoned_ids"] = list(poisoned.ids)
    fit(model, encode(model.tokenizer, poisoned.examples), config.training, run, "attack")
    return model.model
