"""The benchmark of planning knows a cell's keys by hand, and so notices a plan that is quick and wrong."""

import random

import pytest

from benchmark.grid.cell import Cell
from benchmark.perf import planning
from benchmark.plan.plan import stages_of


@pytest.mark.parametrize("number", random.Random(1).sample(range(10_000), 6))
def test_the_keys_by_hand_are_those_of_the_plan(number: int) -> None:
    cell = Cell.parse(planning.by_hand()[number])
    name, keys = planning.straightforward(cell)
    assert name == cell.id
    assert keys <= {key for stage in stages_of(cell) for key in stage.artifacts}
    assert {cell.attack_key, *cell.evaluation_keys} <= keys
