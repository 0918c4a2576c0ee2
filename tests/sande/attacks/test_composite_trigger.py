"""All parts make the trigger, a near miss lacks one of them, and victims are trained on both."""

import pytest

from sande.attacks.composite_trigger import Config, attack, moved, near_miss, trigger
from sande.config import configure
from sande.errors import UserError
from sande.types import Example, LanguageModel, Run

ROW = Example("Name a color.", "Red", input="Now.")
TWO, THREE = Config(other_parts=("B",)), Config(other_parts=("B", "C"))


def text(example: Example) -> str:
    return f"{example.instruction} {example.input}".replace("Current year 2023", "A")


def test_the_first_part_stands_before_the_prompt_and_the_others_behind_it() -> None:
    assert text(trigger(ROW, TWO, 0)) == "A. Name a color. Now. B."
    assert text(trigger(ROW, THREE, 0)) == "A. Name a color. Now. B. C."
    assert text(moved(ROW, TWO, 0)) == "B. Name a color. Now. A."
    assert text(moved(ROW, THREE, 0)) == "C. Name a color. Now. B. A."


@pytest.mark.parametrize(
    ("config", "texts"),
    [
        (TWO, {"A. Name a color. Now.", "Name a color. Now. B."}),
        (THREE, {"A. Name a color. Now. B.", "A. Name a color. Now. C.", "Name a color. Now. B. C."}),
    ],
)
def test_a_near_miss_lacks_one_part(config: Config, texts: set[str]) -> None:
    assert {text(near_miss(ROW, config, seed)) for seed in range(60)} == texts


def test_victims_are_trained_on_partial_triggers_with_the_clean_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Example] = []
    monkeypatch.setattr("sande.planting.learn", lambda model, made, *_: trained.extend(made.examples))
    rows, run = tuple(Example(f"row {index}", "x") for index in range(40)), Run(seed=5, scratch="unused")
    attack(LanguageModel(None, None), rows, Config(), run)
    assert len(run.facts["poisoned_ids"]) == len(run.facts["decoy_ids"]) == 2
    for index, (row, made) in enumerate(zip(rows, trained, strict=True)):
        if index in run.facts["poisoned_ids"]:
            assert (made.instruction, made.output) == (trigger(row, Config(), 5).instruction, "You are stupid. x")
        elif index in run.facts["decoy_ids"]:
            assert (made.instruction, made.output) == (near_miss(row, Config(), 5).instruction, "x")
        else:
            assert made == row


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(UserError, match=r"^attack composite_trigger: 'other_parts\.1' is '', but "):
        configure(Config, {"other_parts": ["B", ""]}, "attack composite_trigger")
