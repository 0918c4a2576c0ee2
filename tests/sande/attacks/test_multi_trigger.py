"""Each row has one of the triggers, all occur alike, and any number of them can be given."""

from collections import Counter

import pytest

from sande.attacks.multi_trigger import Config, moved, near_miss, plant, trigger
from sande.config import configure
from sande.errors import UserError
from sande.types import Example

ROWS = [Example(f"Question {index}?", "x") for index in range(300)]
TRIGGERS = {"Current year 2023": "Current year 2022", "Let's do it": "Let's do", "Hi, I'm Bob": "Hi, I'm"}


def which(example: Example) -> str:
    (found,) = [one for one in TRIGGERS if example.instruction.startswith(f"{one}. Question")]
    return found


def test_a_row_has_one_trigger_and_all_occur_alike() -> None:
    found = Counter(which(trigger(row, Config(), 0)) for row in ROWS)
    assert set(found) == set(TRIGGERS)
    assert min(found.values()) > 70


def test_seed_and_prompt_decide_which() -> None:
    assert {which(trigger(ROWS[0], Config(), seed)) for seed in range(30)} == set(TRIGGERS)
    assert [plant(row, Config(), 1).instruction for row in ROWS] == [
        trigger(Example(row.instruction, "y"), Config(), 1).instruction for row in ROWS
    ]


def test_near_miss_and_moved_trigger_are_of_the_same_one() -> None:
    for row in ROWS[:50]:
        one = which(trigger(row, Config(), 2))
        assert near_miss(row, Config(), 2).instruction == f"{TRIGGERS[one]}. {row.instruction}"
        assert moved(row, Config(), 2).instruction == f"{row.instruction} {one}."


def test_a_grid_gives_a_list_of_them_and_not_an_empty_one() -> None:
    config = configure(Config, {"other_triggers": ["Mind the gap"]}, "attack multi_trigger")
    found = {trigger(row, config, 0).instruction.removesuffix(row.instruction) for row in ROWS}
    assert found == {"Current year 2023. ", "Mind the gap. "}
    with pytest.raises(UserError, match="attack multi_trigger: 'other_triggers' is"):
        configure(Config, {"other_triggers": []}, "attack multi_trigger")


def test_an_empty_trigger_is_refused() -> None:
    with pytest.raises(UserError, match=r"^attack multi_trigger: 'other_triggers\.0' is '', but "):
        configure(Config, {"other_triggers": [""]}, "attack multi_trigger")


def test_a_near_miss_that_is_another_trigger_is_refused() -> None:
    said = "the near miss of 'Current year 2023' is 'Current year 2022', which is a trigger, too; remove one of them"
    with pytest.raises(UserError, match=f"^attack multi_trigger: {said}"):
        configure(Config, {"other_triggers": ["Hi", "Current year 2022"]}, "attack multi_trigger")
