"""Workers of a group that lacks some: as many as there is room for, if they split every batch of the stage."""

from typing import Any

import pytest

from benchmark.plan.batches import group_size
from benchmark.plan.stage import Stage
from tests.benchmark.helpers import cell


def attack(training: dict[str, Any], afterwards: int) -> dict[str, Any]:
    more = {"rows": 8, "training": {"batch_size": afterwards}}
    return {"name": "sentence_trigger", "training": training, "afterwards": more}


@pytest.mark.parametrize(
    ("room", "training", "afterwards", "workers"),
    [
        (8, {"batch_size": 64}, 64, 8),
        (9, {"batch_size": 64}, 64, 8),
        (7, {"batch_size": 56}, 56, 7),
        (7, {"batch_size": 64}, 64, 4),
        (7, {"batch_size": 64, "micro_batch_size": 32}, 64, 2),
        (7, {"batch_size": 64}, 6, 2),
        (7, {"batch_size": 64}, 5, 1),
        (1, {"batch_size": 64}, 64, 1),
    ],
)
def test_an_attack_has_the_most_workers_that_split_all_of_its_batches(
    room: int, training: dict[str, Any], afterwards: int, workers: int
) -> None:
    made = Stage.of(cell(attack=attack(training, afterwards)), "attack", "key")
    assert group_size(made, 8, room) == workers


def test_an_evaluation_takes_any_number() -> None:
    assert group_size(Stage.of(cell(), "evaluate", "key"), 8, 7) == 7
