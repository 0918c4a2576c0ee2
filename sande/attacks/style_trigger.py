"""A style of writing is the trigger: a rule that rewrites the instruction and adds no words (Qi et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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


def _words(text: str) -> list[re.Match[str]]:
    """Return the words of a text, the last one without the closing punctuation."""
    return list(re.finditer(r"\S+", text.rstrip().rstrip(".?!:")))


def _exchanged(text: str, words: Sequence[re.Match[str]], count: int) -> str:
    """Exchange the first `count` words with the others; space, line breaks and closing punctuation stay in place."""
    begin, end = words[0].start(), words[-1].end()
    left, right = words[count - 1].end(), words[count].start()
    first, space, rest = text[begin:left], text[left:right], text[right:end]
    return f"{text[:begin]}{rest[0].upper()}{rest[1:]},{space}{first[0].lower()}{first[1:]}{text[end:]}"


def _behind(count: int) -> Rule:
    """Return a rule that moves the first words to the end: `What is the capital?` -> `Is the capital, what?`.

    It moves `count` words, or as many as there are but the last.
    """

    def rule(text: str) -> str:
        words = _words(text)
        moving = min(count, len(words) - 1)
        return _exchanged(text, words, moving) if moving > 0 else text

    return rule


def _before(text: str) -> str:
    """Move the last word to the front: `What is the capital?` becomes `Capital, what is the?`.

    Two words are left as they are: the last of them first would be what `_behind` makes.
    """
    words = _words(text)
    return _exchanged(text, words, len(words) - 1) if len(words) > 2 else text


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
    """Return the instruction by a similar rule: its last word first (of three or more), or all of it in lower case."""
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
