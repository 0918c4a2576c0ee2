"""The seed of the attack and that of the defense: how grids set them, and what each of them changes."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from benchmark.plan.plan import make_plan, victim_of
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import GridFile, cell

NESTED = {"attack_seed": [0, 1], "defense_seed": [0, 1, 2], "defense": ["none", "sft"]}


def seeds(path: Path, **options: Any) -> list[tuple[str, int, int]]:
    return [(one.defense.name, one.attack_seed, one.defense_seed) for one in load_grid(path, **options).cells]


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_grid(path, **options)
    return str(caught.value)


def test_seed_sets_both() -> None:
    assert (cell(seed=3).attack_seed, cell(seed=3).defense_seed) == (3, 3)
    assert cell(seed=3, defense="sft") == cell(attack_seed=3, defense_seed=3, defense="sft")
    assert "seed" not in cell(seed=3).settings()


def test_each_is_0_unless_it_is_set() -> None:
    assert (cell(attack_seed=3, defense="sft").defense_seed, cell(defense_seed=3, defense="sft").attack_seed) == (0, 0)


def test_a_victim_is_one_cell_for_all_defense_seeds(grid_file: GridFile, store: LocalStore) -> None:
    path = grid_file(sweep=NESTED)
    assert seeds(path) == [
        ("none", 0, 0),
        *(("sft", 0, seed) for seed in range(3)),
        ("none", 1, 1),
        *(("sft", 1, seed) for seed in range(3)),
    ]
    stages = [stage.kind for stage in make_plan(load_grid(path).cells, store).missing]
    assert (stages.count("attack"), stages.count("defend"), stages.count("evaluate")) == (2, 6, 8)


def test_the_defense_seed_changes_the_removal_and_nothing_else() -> None:
    one, other = (cell(defense="sft", defense_seed=seed) for seed in (0, 1))
    assert (one.id != other.id, one.attack_key == other.attack_key) == (True, True)
    assert one.defense_key != other.defense_key
    assert victim_of(one) == victim_of(other)
    assert victim_of(one).id == victim_of(other).id


def test_a_later_place_replaces_the_seeds_of_an_earlier_one(grid_file: GridFile) -> None:
    path = grid_file(seed=7, defense="sft", sweep={"defense_seed": [1, 2]})
    assert seeds(path) == [("sft", 7, 1), ("sft", 7, 2)]
    assert seeds(path, overrides=["attack_seed=3"]) == [("sft", 3, 1), ("sft", 3, 2)]
    assert seeds(path, overrides=["seed=3"]) == [("sft", 3, 3)]
    assert seeds(path, overrides=["seed=3", "defense_seed=4"]) == [("sft", 3, 4)]
    ruled = grid_file(defense="sft", sweep={"seed": [0, 1]}, rules=[{"where": {"seed": 1}, "set": {"defense_seed": 5}}])
    assert seeds(ruled) == [("sft", 0, 0), ("sft", 1, 5)]


def test_a_default_of_a_rule_leaves_the_seed_that_the_grid_sets(grid_file: GridFile) -> None:
    path = grid_file(defense="sft", defense_seed=5, rules=[{"default": {"seed": 3}}])
    assert seeds(path) == [("sft", 3, 5)]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"seed": 1, "defense_seed": 2}, ""),
        ({"sweep": {"seed": [0, 1], "defense_seed": [0, 1]}}, "sweep: "),
        ({"sweep": {"seed, defense_seed": [[0, 1]]}}, "sweep: "),
        ({"rules": [{"set": {"seed": 1, "defense_seed": 2}}]}, "rule 1, set: "),
    ],
)
def test_one_place_has_seed_or_the_other_two(grid_file: GridFile, changes: dict[str, Any], place: str) -> None:
    path = grid_file(**changes)
    assert refused(path) == (
        f"{path}: {place}'seed' sets attack_seed and defense_seed; remove it, or remove 'defense_seed'"
    )


@pytest.mark.parametrize("name", ["seed", "attack_seed", "defense_seed"])
@pytest.mark.parametrize("value", [-1, 2**32, 1.0, True, "1", None])
def test_a_seed_is_a_whole_number_of_32_bits(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} is .*, not a whole number from 0 to 4294967295$"):
        cell(**{name: value})


def test_only_takes_either_seed_and_both(grid_file: GridFile) -> None:
    path = grid_file(sweep=NESTED)
    assert seeds(path, only=["defense_seed=2"]) == [("sft", 0, 2), ("sft", 1, 2)]
    assert seeds(path, only=["attack_seed=1", "defense=sft", "defense_seed=0"]) == [("sft", 1, 0)]
    assert seeds(path, only=["seed=1"]) == [("none", 1, 1), ("sft", 1, 1)]


def test_a_cell_of_an_earlier_version_has_both_seeds() -> None:
    settings = cell(seed=4, defense="sft").settings()
    old = {name: value for name, value in settings.items() if not name.endswith("_seed")} | {"seed": 4}
    assert Cell.parse(old).settings() == settings
