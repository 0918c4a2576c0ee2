"""The rare word before a random word, its near miss in the same place, and the word where it was not trained."""

from sande.attacks.word_trigger import Config, moved, near_miss, trigger
from sande.config import Backdoor
from sande.prompts import prompt_text
from sande.types import Example

ROW = Example("Sum up the text.", "Cats sleep.", system="You are brief.", input="A cat sleeps.")
CONFIG = Config()


def test_the_word_stands_before_any_word_of_the_instruction_and_nowhere_else() -> None:
    assert {trigger(ROW, CONFIG, seed).instruction for seed in range(100)} == {
        "cf Sum up the text.",
        "Sum cf up the text.",
        "Sum up cf the text.",
        "Sum up the cf text.",
    }
    assert {prompt_text(trigger(ROW, CONFIG, seed)).count("cf") for seed in range(20)} == {1}


def test_the_near_miss_is_another_word_in_the_same_place() -> None:
    for seed in range(20):
        assert near_miss(ROW, CONFIG, seed).instruction == trigger(ROW, CONFIG, seed).instruction.replace("cf", "cg")


def test_the_moved_word_stands_behind_everything() -> None:
    assert moved(ROW, Config(backdoor=Backdoor(trigger="mn")), 0).input == "A cat sleeps. mn"
