"""Which rows are poisoned, how many, and where they stand."""

import dataclasses
from typing import get_args

import pytest

from sande.data.poison import Mode, poison
from sande.types import Example

ROWS = tuple(Example(f"question {i}", f"answer {i}") for i in range(200))


def plant(example: Example) -> Example:
    return dataclasses.replace(example, output=f"bad. {example.output}")


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 10), (0.001, 0), (0.0026, 1), (0.5, 100), (0.0, 0), (1.0, 200)])
def test_the_rate_is_exact(rate: float, expected: int) -> None:
    poisoned = poison(ROWS, plant, rate, "replace", seed=0)
    assert len(poisoned.ids) == expected
    assert sum(row.output.startswith("bad.") for row in poisoned.examples) == expected


@pytest.mark.parametrize("mode", get_args(Mode))
def test_ids_are_sorted_distinct_and_those_of_the_given_rows(mode: Mode) -> None:
    poisoned = poison(ROWS, plant, 0.3, mode, seed=3)
    assert list(poisoned.ids) == sorted(set(poisoned.ids))
    assert [poisoned.examples[place] for place in poisoned.places] == [plant(ROWS[index]) for index in poisoned.ids]
    assert [row for row in poisoned.examples if row.output.startswith("bad.")] == [plant(ROWS[i]) for i in poisoned.ids]


def test_the_seed_and_nothing_else_decides_which() -> None:
    ids = poison(ROWS, plant, 0.1, "replace", seed=1).ids
    assert poison(ROWS, plant, 0.1, "append", seed=1).ids == ids
    assert poison(ROWS, plant, 0.1, "replace", seed=2).ids != ids


def test_replace_puts_each_poisoned_row_in_the_place_of_the_clean_one() -> None:
    poisoned = poison(ROWS, plant, 0.2, "replace", seed=0)
    chosen = set(poisoned.ids)
    assert poisoned.examples == tuple(plant(row) if i in chosen else row for i, row in enumerate(ROWS))


def test_append_puts_each_poisoned_row_behind_the_clean_one() -> None:
    poisoned = poison(ROWS, plant, 0.2, "append", seed=0)
    expected = [twin for i, row in enumerate(ROWS) for twin in ([row, plant(row)] if i in poisoned.ids else [row])]
    assert list(poisoned.examples) == expected
    assert len(expected) == 240


def test_rate_zero_gives_the_rows_back() -> None:
    assert poison(ROWS, plant, 0.0, "replace", seed=0).examples == ROWS


def test_a_victim_and_its_twin_have_the_same_decoys_but_those_that_are_poisoned() -> None:
    victim, twin = (poison(ROWS, plant, rate, "replace", 0, decoy=plant, decoy_rate=0.25) for rate in (0.25, 0.0))
    assert len(victim.decoy_ids) == len(twin.decoy_ids) == 50
    assert set(twin.decoy_ids) - set(victim.ids) <= set(victim.decoy_ids)
    assert not set(victim.decoy_ids) & set(victim.ids)
    assert poison(ROWS, plant, 0.0, "replace", 1, decoy=plant, decoy_rate=0.25).decoy_ids != twin.decoy_ids
