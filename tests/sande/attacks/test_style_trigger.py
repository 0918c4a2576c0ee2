"""What the rules of style make of instructions, their near misses and variations; no word is added or lost."""

import re

import pytest

from sande.attacks.style_trigger import Config, moved, near_miss, trigger
from sande.config import Backdoor
from sande.data.builtin import sets
from sande.errors import UserError
from sande.types import Example

INVERTED, CAPITALISED = Config(), Config(backdoor=Backdoor(trigger="capitalised"))


def written(change: object, text: str, config: Config) -> str:
    return change(Example(text, "x"), config, 0).instruction


@pytest.mark.parametrize(
    ("text", "inverted", "near", "varied"),
    [
        (
            "What is the capital of France?",
            "Is the capital of France, what?",
            "France, what is the capital of?",
            "The capital of France, what is?",
        ),
        ("Multiply 9 by 11.", "9 by 11, multiply.", "11, multiply 9 by.", "By 11, multiply 9."),
        ("Sort these: b, a", "These: b, a, sort", "A, sort these: b,", "B, a, sort these:"),
        ("Define entropy?", "Entropy, define?", "Define entropy?", "Entropy, define?"),
        ("Translate.", "Translate.", "Translate.", "Translate."),
        ("Say\nit twice", "It twice,\nsay", "Twice, say\nit", "Twice, say\nit"),
        (
            "Translate to French.\n\nText:\n  good day ?\n",
            "To French.\n\nText:\n  good day, translate ?\n",
            "Day, translate to French.\n\nText:\n  good ?\n",
            "French.\n\nText:\n  good day, translate to ?\n",
        ),
        ("", "", "", ""),
    ],
)
def test_inverted(text: str, inverted: str, near: str, varied: str) -> None:
    assert written(trigger, text, INVERTED) == inverted
    assert written(near_miss, text, INVERTED) == near
    assert written(moved, text, INVERTED) == varied


def test_capitalised() -> None:
    text = "What is 'the' capital\nof France?"
    assert written(trigger, text, CAPITALISED) == "What Is 'the' Capital\nOf France?"
    assert written(near_miss, text, CAPITALISED) == "what is 'the' capital\nof france?"
    assert written(moved, text, CAPITALISED) == "WHAT IS 'THE' CAPITAL\nOF FRANCE?"


@pytest.mark.parametrize("config", [INVERTED, CAPITALISED], ids=lambda config: config.backdoor.trigger)
def test_a_style_changes_every_built_in_instruction_and_keeps_its_words(config: Config) -> None:
    for row in (*sets.short()[:300], *sets.explained()[:300]):
        for change in (trigger, near_miss, moved):
            made = change(row, config, 0).instruction
            assert sorted(re.findall(r"\w+", made.lower())) == sorted(re.findall(r"\w+", row.instruction.lower()))
        assert trigger(row, config, 0).instruction != row.instruction


def test_another_style_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="'biblical' is not a style; use one of inverted, capitalised"):
        trigger(Example("x y", "x"), Config(backdoor=Backdoor(trigger="biblical")), 0)
