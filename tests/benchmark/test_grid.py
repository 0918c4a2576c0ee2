"""Grids: how they expand, what --set and --only do, and what is said of a grid that cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from benchmark import grid as grids
from benchmark.cell import Cell
from sande.errors import UserError
from tests.benchmark.helpers import SFT_FAST, GridFile

SHIPPED = sorted((Path(__file__).parents[2] / "grids").glob("*.yaml"))


def values(path: Path, *fields: str, **options: Any) -> list[tuple[Any, ...]]:
    """The named fields of every cell, in order."""
    return [tuple(_at(cell, field) for field in fields) for cell in grids.load(path, **options).cells]


def _at(cell: Cell, field: str) -> Any:
    inner: Any = cell.settings()
    for part in field.split("."):
        inner = inner[part]
    return inner


def sentence(path: Path, **options: Any) -> str:
    """The message of the UserError that loading raises: one line that names the file."""
    with pytest.raises(UserError) as caught:
        grids.load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_grid_without_sweep_is_one_cell(grid_file: GridFile) -> None:
    loaded = grids.load(grid_file("plain", about="words", seed=3))
    assert (loaded.name, loaded.about, len(loaded.cells)) == ("plain", "words", 1)
    assert loaded.cells[0].seed == 3


def test_an_axis_gives_one_cell_a_value_in_its_order(grid_file: GridFile) -> None:
    assert values(grid_file(sweep={"seed": [2, 0, 1]}), "seed") == [(2,), (0,), (1,)]


def test_axes_are_multiplied_the_last_changing_fastest(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [0, 1], "attack.poison_rate": [0.1, 0.2]})
    assert values(path, "seed", "attack.poison_rate") == [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)]


def test_fields_of_a_joint_axis_change_together(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed, data.rows": [[0, 5], [1, 7]]})
    assert values(path, "seed", "data.rows") == [(0, 5), (1, 7)]


@pytest.mark.parametrize("method_first", [True, False])
def test_a_field_swept_inside_a_swept_method_is_set_in_it(grid_file: GridFile, method_first: bool) -> None:
    axes = {"defense": ["sande", {"name": "sande_p", "parrot_length": 3}], "defense.parrot_position": [1, 4]}
    path = grid_file(sweep=axes if method_first else dict(reversed(axes.items())))
    found = values(path, "defense.name", "defense.parrot_length", "defense.parrot_position")
    assert sorted(found) == [("sande", 6, 1), ("sande", 6, 4), ("sande_p", 3, 1), ("sande_p", 3, 4)]


def test_the_sweep_sets_a_field_whose_section_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("model: tiny\ndata: {name: builtin-short}\nremoval:\nsweep: {removal.name: [builtin-short]}\n")
    assert values(path, "removal.name") == [("builtin-short",)]


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "1E-4", "0.0001", "1.e-4"])
def test_exponents_are_numbers_as_people_write_them(grid_file: GridFile, tmp_path: Path, written: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "model: tiny\ndata: {name: builtin-short}\nremoval: {name: builtin-short}\n"
        f"defense: {{name: sft, training: {{learning_rate: {written}}}}}\n"
    )
    assert values(path, "defense.training.learning_rate") == [(1e-4,)]


def test_set_changes_every_cell(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [0, 1]})
    options = {"overrides": ["data.rows=4", "attack.training.learning_rate=1e-4"]}
    assert values(path, "seed", "data.rows", "attack.training.learning_rate", **options) == [(0, 4, 1e-4), (1, 4, 1e-4)]


def test_cells_that_set_makes_equal_are_kept_once(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [0, 1], "data.rows": [4, 5]})
    assert values(path, "seed", "data.rows", overrides=["seed=9"]) == [(9, 4), (9, 5)]


def test_set_replaces_a_swept_method(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", SFT_FAST]})
    found = values(path, "defense.name", "defense.parrot_length", overrides=["defense={name: sande, parrot_length: 2}"])
    assert found == [("sande", 2)]


def test_set_reaches_the_resources(grid_file: GridFile) -> None:
    loaded = grids.load(grid_file(resources={"workers": 2}), overrides=["resources.cpus=3"])
    assert (loaded.resources.workers, loaded.resources.cpus, loaded.resources.gpus) == (2, 3, None)


def test_resources_do_not_change_a_cell(grid_file: GridFile) -> None:
    plain, many = grids.load(grid_file("a")), grids.load(grid_file("b", resources={"workers": 4}))
    assert plain.cells == many.cells


def test_only_keeps_one_method(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", "sft", "sande", "sande_p"]})
    assert values(path, "defense.name", only=["defense=sande"]) == [("sande",)]


def test_only_is_or_within_a_path_and_and_over_paths(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [0, 1, 2], "defense": ["none", "sft"]})
    found = values(path, "seed", "defense.name", only=["seed=0", "seed=2", "defense=sft"])
    assert found == [(0, "sft"), (2, "sft")]


def test_only_compares_numbers_as_numbers(grid_file: GridFile) -> None:
    path = grid_file(sweep={"attack.poison_rate": [0.01, 0.05]})
    assert values(path, "attack.poison_rate", only=["attack.poison_rate=1e-2"]) == [(0.01,)]


def test_only_by_setting(grid_file: GridFile) -> None:
    path = grid_file(sweep={"removal.name": ["builtin-short", "builtin-explained"]})
    assert values(path, "removal.name", only=["setting=out-of-domain"]) == [("builtin-explained",)]


def test_only_with_an_unknown_field_lists_those_there_are(grid_file: GridFile) -> None:
    text = sentence(grid_file(), only=["defence=sft"])
    assert "--only defence: no cell has that field" in text
    assert "defense" in text
    assert "setting" in text


def test_only_by_a_setting_that_some_methods_lack_keeps_those_that_have_it(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", "sande"]})
    assert values(path, "defense.name", only=["defense.parrot_length=6"]) == [("sande",)]


def test_only_that_matches_nothing_is_said_with_the_file(grid_file: GridFile) -> None:
    path = grid_file()
    text = sentence(path, only=["defense=sft"])
    assert text.startswith(f"{path}: no cell matches --only defense=sft")


@pytest.mark.parametrize("option", ["overrides", "only"])
def test_an_option_without_equals_sign_is_refused(grid_file: GridFile, option: str) -> None:
    assert "expected path.to.field=value" in sentence(grid_file(), **{option: ["seed"]})


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key at the top": ({"deffense": "sft"}, ["unknown setting 'deffense'", "defense", "sweep", "resources"]),
    "unknown key in data": (
        {"data": {"row": 3}},
        ["data", "unknown setting 'row'", "max_tokens, name, rows, test_rows"],
    ),
    "unknown key of a method": (
        {"defense": {"name": "sande", "length": 3}},
        ["defense sande", "'length'", "parrot_length"],
    ),
    "unknown key in training": (
        {"defense": {"name": "sft", "training": {"lr": 0.1}}},
        ["defense sft.training", "unknown setting 'lr'", "learning_rate"],
    ),
    "unknown key of resources": ({"resources": {"worker": 2}}, ["resources", "unknown setting 'worker'", "workers"]),
    "unknown defense": ({"defense": "sandy"}, ["no defense is called 'sandy'", "none, osft, sande, sande_p, sft"]),
    "unknown attack": ({"attack": "word"}, ["no attack is called 'word'", "sentence_trigger"]),
    "unknown metric": (
        {"metrics": ["asr", "beauty"]},
        ["no metric is called 'beauty'", "accuracy, asr, "],
    ),
    "unknown data set": ({"data": {"name": "llama"}}, ["no data set is called 'llama'", "alpaca", "builtin-short"]),
    "unknown removal set": ({"removal": {"name": "llama"}}, ["no data set is called 'llama'"]),
    "method without name": ({"defense": {"training": {}}}, ["defense", "expected a name"]),
    "wrong type": ({"data": {"name": "builtin-short", "rows": "many"}}, ["data", "'rows' is 'many'", "integer"]),
    "wrong type in training": (
        {"attack": {"name": "sentence_trigger", "training": {"learning_rate": "big"}}},
        ["'big'"],
    ),
    "settings that are no mapping": ({"data": 3}, ["data: expected settings as 'key: value', got 3"]),
    "seed that is no number": ({"seed": "one"}, ["seed is 'one'"]),
    "negative seed": ({"seed": -1}, ["seed is -1"]),
    "floor beyond 100": ({"asr_floor": 101}, ["asr_floor is 101"]),
    "rate above 1": (
        {"attack": {"name": "sentence_trigger", "poison_rate": 5}},
        ["poison_rate", "less than or equal to 1"],
    ),
    "rate below 0": (
        {"attack": {"name": "sentence_trigger", "poison_rate": -0.1}},
        ["poison_rate", "greater than or equal"],
    ),
    "metrics without asr": ({"metrics": ["false_trigger_rate"]}, ["metrics holds no 'asr'"]),
    "no metrics": ({"metrics": []}, ["metrics is []"]),
    "empty axis": ({"sweep": {"seed": []}}, ["sweep: 'seed' needs a list of at least one value"]),
    "axis that is no list": ({"sweep": {"seed": 3}}, ["sweep: 'seed' needs a list"]),
    "sweep that is a list": ({"sweep": [1]}, ["sweep: expected paths with lists of values"]),
    "joint axis too short": ({"sweep": {"seed, data.rows": [[1]]}}, ["'seed, data.rows' sets 2 fields"]),
    "joint axis without lists": ({"sweep": {"seed, data.rows": [1]}}, ["'seed, data.rows' sets 2 fields"]),
    "swept path through a value": (
        {"sweep": {"model.deep": [1]}},
        ["'model.deep' cannot be set", "'model' holds 'tiny'"],
    ),
    "swept unknown key": ({"sweep": {"data.row": [1]}}, ["data", "unknown setting 'row'"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_the_file_and_what_would_do(grid_file: GridFile, mistake: str) -> None:
    changes, parts = MISTAKES[mistake]
    path = grid_file(**changes)
    text = sentence(path)
    assert text.startswith(f"{path}")
    for part in parts:
        assert part in text


def test_two_metrics_that_measure_under_one_name_are_refused(grid_file: GridFile) -> None:
    assert "asr" in sentence(grid_file(metrics=["asr", {"name": "asr", "new_tokens": 20}]))


def test_a_model_that_is_no_name_is_refused_as_such(grid_file: GridFile) -> None:
    assert "model" in sentence(grid_file(model=["tiny"]))


@pytest.mark.parametrize("assignment", ["resources.workers.count=3", "resources.=2"])
def test_a_wrong_path_into_the_resources_names_the_place(grid_file: GridFile, assignment: str) -> None:
    assert "resources" in sentence(grid_file(resources={"workers": 1}), overrides=[assignment])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert sentence(tmp_path / "none.yaml").startswith(f"no grid file {tmp_path / 'none.yaml'}")


def test_a_folder_is_no_grid(tmp_path: Path) -> None:
    assert str(tmp_path) in sentence(tmp_path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"model: tiny\ndata: {name: ]\nseed: 1\n", ", line 2: not YAML"),
        (b"model: tiny\n\tseed: 1\n", ", line 2: not YAML"),
        (b"- model\n- tiny\n", "expected settings as 'key: value'"),
        (b"", "expected settings as 'key: value'"),
        (b"\x93\x00\xff\xfe\x10", "cannot be read"),
        (b"model: tiny\x00\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_grid_is_one_sentence(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    text = sentence(path)
    assert text.startswith(str(path))
    assert part in text


def test_there_are_shipped_grids() -> None:
    assert {path.stem for path in SHIPPED} >= {"smoke", "quickstart"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_load_and_say_what_they_are(path: Path) -> None:
    loaded = grids.load(path)
    assert loaded.about
    assert len({cell.id for cell in loaded.cells}) == len(loaded.cells) >= 1
