"""Mistakes that would change which cells a grid has: a path swept twice, and values of --only and --set without use."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.grid.load import load_grid
from sande.errors import UserError
from tests.benchmark.helpers import GridFile


def refused(path: Path, **options: Any) -> str:
    """Return the message of the UserError that loading raises, without the name of the file."""
    with pytest.raises(UserError) as caught:
        load_grid(path, **options)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("sweep", "path"),
    [
        ({"seed": [1, 2], "seed, asr_floor": [[3, 3]]}, "seed"),
        ({"asr_floor, seed": [[3, 3]], "seed": [1, 2]}, "seed"),
        ({"seed,seed": [[1, 2]]}, "seed"),
        ({"defense.parrot_length , data.rows": [[1, 2]], "defense.parrot_length": [1]}, "defense.parrot_length"),
    ],
)
def test_a_path_is_in_one_axis(grid_file: GridFile, sweep: dict[str, Any], path: str) -> None:
    assert refused(grid_file(sweep=sweep)) == f"sweep: '{path}' is in two axes; remove one"


def test_seed_is_an_axis_without_those_that_it_sets(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [1, 2], "attack_seed, asr_floor": [[3, 3]]})
    assert refused(path) == "sweep: 'seed' sets attack_seed and defense_seed; remove it, or remove 'attack_seed'"


def test_a_union_may_sweep_a_path_of_its_grids_but_once(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first", sweep={"seed, data.rows": [[0, 5], [1, 7]]})
    path = tmp_path / "union.yaml"
    path.write_text(yaml.safe_dump({"include": ["first"], "sweep": {"seed": [3]}}))
    assert [(cell.attack_seed, cell.data.rows) for cell in load_grid(path).cells] == [(3, 5), (3, 7)]
    path.write_text(yaml.safe_dump({"include": ["first"], "sweep": {"seed": [3], "seed, data.rows": [[4, 4]]}}))
    assert refused(path) == "sweep: 'seed' is in two axes; remove one"


@pytest.mark.parametrize(
    ("only", "named"),
    [
        (["defense=sft", "defense=sandd"], "defense=sandd"),
        (["defense=sandd", "defense=sft"], "defense=sandd"),
        (["seed=1", "seed=7", "defense=sandd"], "seed=7 defense=sandd"),
        (["seed=2", "defense=none"], "seed=2 defense=none"),  # some cell has each, none has both
    ],
)
def test_some_cell_has_each_value_of_only(grid_file: GridFile, only: list[str], named: str) -> None:
    path = grid_file(sweep={"defense, seed": [["none", 1], ["sft", 1], ["sft", 2]]})
    assert refused(path, only=only) == f"no cell matches --only {named}; see 'sande-bench plan {path}'"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("resources={workers: 99, garbage: 1}", "--set resources=…: set one field, as in resources.workers=2"),
        ("resources=garbage", "--set resources=…: set one field, as in resources.workers=2"),
        ("search={trials: 3}", "--set search=…: set one field, as in search.trials=8"),
    ],
)
def test_set_takes_one_field_of_a_section_of_the_grid(grid_file: GridFile, given: str, message: str) -> None:
    space = {"space": {"defense.training.learning_rate": [1e-4, 1e-3]}}
    assert refused(grid_file(defense="sft", search=space), overrides=[given]) == message


def test_a_grid_that_is_not_there_names_the_one_that_was_meant(grid_file: GridFile, tmp_path: Path) -> None:
    path, shows = grid_file(), "'sande-bench list grids' shows the grids"
    assert refused(path.with_suffix("")).endswith(f"no such grid file; use {path}; {shows}")
    assert refused(Path("quickstrat")) == f"no such grid file; use quickstart; {shows}"
    assert refused(Path("zzz.yaml")) == f"no such grid file; {shows}"
    assert "\n" not in refused(tmp_path / ("x" * 300))  # longer than a file system takes
