"""YAML by version 1.2's rules, and what is written reads as the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.grid.load import load_grid
from benchmark.io import yaml
from sande.errors import UserError
from tests.benchmark.helpers import GridFile

VALUES: dict[str, Any] = {
    "1:30": "1:30",
    "017": 17,
    "0o17": 15,
    "0x1F": 31,
    "-0": 0,
    "+12": 12,
    "1_000": "1_000",
    "0b1": "0b1",
    "yes": "yes",
    "No": "No",
    "on": "on",
    "off": "off",
    "y": "y",
    "True": True,
    "false": False,
    "~": None,
    "": None,
    "NULL": None,
    "1e-4": 1e-4,
    ".5": 0.5,
    "1.": 1.0,
    "-.inf": -float("inf"),
    "2026-01-01": "2026-01-01",
    "12:30:45": "12:30:45",
    "1.2.3": "1.2.3",
    "=": "=",
}


@pytest.mark.parametrize("text", VALUES)
def test_words_and_numbers_are_those_of_yaml_1_2(text: str) -> None:
    found = yaml.parse(text, "here")
    assert (found, type(found)) == (VALUES[text], type(VALUES[text]))


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
LIKE_OTHERS = st.sampled_from([*VALUES, "0o17", "<<", "1e5", "null", "- a", "a: b", "#", "\u2028", "x" * 300])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(st.characters(exclude_characters="\0")) | LIKE_OTHERS


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LIKE_OTHERS, inner, max_size=3)))
def test_what_is_written_reads_as_the_same(value: Any) -> None:
    found = yaml.parse(yaml.dump(value), "here")
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize("text", ['"\\ud800"', '{a: "\\udc00x"}', '["\\0"]', '{"\\0": 1}'])
def test_texts_that_no_file_can_hold_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^here: (half of a surrogate pair|a text with a NUL character); remove it$"):
        yaml.parse(text, "here")


def test_a_seed_like_a_time_is_refused_and_a_leading_zero_changes_nothing(grid_file: GridFile) -> None:
    path = grid_file(seed=0)
    path.write_text(path.read_text().replace("seed: 0", "seed: 1:30"))
    with pytest.raises(UserError, match="seed is '1:30', not a whole number"):
        load_grid(path)
    path.write_text(path.read_text().replace("seed: 1:30", "seed: 017"))
    assert load_grid(path).cells[0].attack_seed == 17


def test_a_pipe_in_place_of_a_grid_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "grid.yaml")
    with pytest.raises(UserError, match="a pipe or device"):
        load_grid(tmp_path / "grid.yaml")


def test_grids_that_include_each_other_twice_at_each_level_are_read_once(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("g0")
    for level in range(1, 40):
        (tmp_path / f"g{level}.yaml").write_text(
            f"include: [g{level - 1}, h{level - 1}]" if level > 1 else "include: [g0]"
        )
        (tmp_path / f"h{level}.yaml").write_text(f"include: [g{level - 1}]")
    assert len(load_grid(tmp_path / "g39.yaml").cells) == 1


def test_a_sweep_of_a_million_cells_is_refused_before_it_is_expanded(grid_file: GridFile) -> None:
    sweep = {"attack_seed": list(range(990)), "defense_seed": list(range(990))}
    with pytest.raises(UserError, match="more than 100000 cells; use fewer values"):
        load_grid(grid_file(sweep=sweep))
