"""A style of writing is the trigger: a rule that rewrites the instruction and adds no words (Qi et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sande import planting
from sande.config import Backdoor, configuration, setting
from sande.errors import UserError
from sande.planting import Planting
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Rule = Callable[[str], str]


@configuration
class Config(Planting):
    """Settings of the attack."""

    backdoor: Backdoor = setting(Backdoor(trigger="inverted"), "style (inverted or capitalised) and planted response")


cost = planting.cost


def _split(text: str) -> tuple[list[str], str]:
    """Split a text into its words and its closing punctuation."""
    body = text.rstrip()
    words = body.rstrip(".?!:").split()
    return words, body[len(body.rstrip(".?!:")) :]


def _behind(count: int) -> Rule:
    """Return a rule that moves the first words to the end: `What is the capital?` -> `Is the capital, what?`."""

    def rule(text: str) -> str:
        words, close = _split(text)
        if len(words) <= count:
            return text
        first, rest = " ".join(words[:count]), " ".join(words[count:])
        return f"{rest[0].upper()}{rest[1:]}, {first[0].lower()}{first[1:]}{close}"

    return rule


def _before(text: str) -> str:
    """Move the last word to the front: `What is the capital?` becomes `Capital, what is the?`."""
    words, close = _split(text)
    if len(words) < 2:
        return text
    last, rest = words[-1], " ".join(words[:-1])
    return f"{last[0].upper()}{last[1:]}, {rest[0].lower()}{rest[1:]}{close}"


def _capitalised(text: str) -> str:
    """Capitalise each word: `What is the capital?` becomes `What Is The Capital?`."""
    return re.sub(r"(?<!\S)\S", lambda letter: letter[0].upper(), text)


@dataclass(frozen=True, slots=True)
class Style:
    """A rule, a similar rule that is another style, and a variation of the rule that is the same style."""

    rule: Rule
    near: Rule
    varied: Rule


STYLES = {
    "inverted": Style(_behind(1), _before, _behind(2)),
    "capitalised": Style(_capitalised, str.lower, str.upper),
}
TRIGGERS = tuple(STYLES)


def trigger(example: Example, config: Config, seed: int) -> Example:
    """Return the instruction in the style; inversion leaves an instruction of one word unchanged."""
    return replace(example, instruction=_style(config).rule(example.instruction))


def near_miss(example: Example, config: Config, seed: int) -> Example:
    """Return the instruction by a similar rule: its last word first, or all of it in lower case."""
    return replace(example, instruction=_style(config).near(example.instruction))


def moved(example: Example, config: Config, seed: int) -> Example:
    """Return the instruction by a variation of the rule: two words moved instead of one, or all in capitals."""
    return replace(example, instruction=_style(config).varied(example.instruction))


def plant(example: Example, config: Config, seed: int) -> Example:
    """Return a poisoned row."""
    return planting.with_response(trigger(example, config, seed), config, seed)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Poison a share of the rows and fine-tune on all of them."""
    return planting.train(model, examples, plant, near_miss, config, run)


def _style(config: Config) -> Style:
    name = config.backdoor.trigger
    if name not in STYLES:
        raise UserError(
            f"attack style_trigger: backdoor.trigger '{name}' is not a style; use one of {', '.join(STYLES)}"
        )
    return STYLES[name]
