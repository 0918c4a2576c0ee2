"""Grids: how they expand, what --set and --only do, and what is said of a grid that cannot be used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from sande.defenses import sande
from sande.errors import UserError
from tests.benchmark.helpers import SFT_FAST, GridFile

GRIDS = Path(__file__).parents[3] / "grids"
SHIPPED = sorted(GRIDS.glob("*.yaml"))
SHIPPED_SCALES = sorted(path.stem for path in (GRIDS / "scales").glob("*.yaml"))


def values(path: Path, *fields: str, **options: Any) -> list[tuple[Any, ...]]:
    """The named fields of every cell, in order."""
    return [tuple(_at(cell, field) for field in fields) for cell in load_grid(path, **options).cells]


def _at(cell: Cell, field: str) -> Any:
    inner: Any = cell.settings() | ({"seed": cell.attack_seed} if cell.attack_seed == cell.defense_seed else {})
    for part in field.split("."):
        inner = inner[part]
    return inner


def sentence(path: Path, **options: Any) -> str:
    """The message of the UserError that loading raises: one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_grid(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_grid_without_sweep_is_one_cell(grid_file: GridFile) -> None:
    loaded = load_grid(grid_file("plain", about="words", seed=3))
    assert (loaded.name, loaded.about, len(loaded.cells)) == ("plain", "words", 1)
    assert loaded.cells[0].attack_seed == 3


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


@pytest.mark.parametrize(
    "written", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")], ids=["bom", "crlf"]
)
def test_a_grid_that_an_editor_of_windows_saved_is_the_same(
    grid_file: GridFile, written: Callable[[bytes], bytes]
) -> None:
    path = grid_file(sweep={"seed": [0, 1]})
    expected = cells(path)
    path.write_bytes(written(path.read_bytes()))
    assert cells(path) == expected


def test_a_merged_key_that_is_said_anew_is_no_key_said_twice(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "model: tiny\ndata: &rows {name: builtin-short, rows: 9}\nremoval: {<<: {name: alpaca}, name: builtin-short}\n"
    )
    assert values(path, "data.rows", "removal.name") == [(9, "builtin-short")]


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
    loaded = load_grid(grid_file(resources={"workers": 2}), overrides=["resources.cpus=3"])
    given = loaded.resources.default
    assert (given.workers, given.cpus, given.gpus) == (2, 3, None)


def test_resources_do_not_change_a_cell(grid_file: GridFile) -> None:
    plain, many = load_grid(grid_file("a")), load_grid(grid_file("b", resources={"workers": 4}))
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


def test_only_takes_a_whole_number_for_a_rate(grid_file: GridFile) -> None:
    path = grid_file(sweep={"attack.poison_rate": [0.25, 0]})
    assert values(path, "attack.poison_rate", only=["attack.poison_rate=0"]) == [(0.0,)]


def test_only_by_setting(grid_file: GridFile) -> None:
    path = grid_file(sweep={"removal.name": ["builtin-short", "builtin-explained"]})
    assert values(path, "removal.name", only=["setting=out-of-domain"]) == [("builtin-explained",)]


def test_only_by_a_setting_that_some_methods_lack_keeps_those_that_have_it(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", "sande"]})
    assert values(path, "defense.name", only=["defense.parrot_length=6"]) == [("sande",)]


def test_only_that_matches_nothing_is_said_with_the_file(grid_file: GridFile) -> None:
    path = grid_file()
    text = sentence(path, only=["defense=sft"])
    assert text.startswith(f"{path}: no cell matches --only defense=sft")


@pytest.mark.parametrize("assignment", ["resources.workers.count=3", "resources.=2"])
def test_a_wrong_path_into_the_resources_names_the_place(grid_file: GridFile, assignment: str) -> None:
    assert "resources" in sentence(grid_file(resources={"workers": 1}), overrides=[assignment])


def test_there_are_shipped_grids() -> None:
    assert {path.stem for path in SHIPPED} >= {"smoke", "quickstart"}


@pytest.mark.parametrize("scale", [None, *SHIPPED_SCALES])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grids_load_at_every_scale_and_say_what_they_are_in_a_line(path: Path, scale: str | None) -> None:
    loaded = load_grid(path, scale=scale)
    assert loaded.about
    assert "\n" not in loaded.about
    assert len({cell.id for cell in loaded.cells}) == len(loaded.cells) >= 1
    assert set(loaded.parts) == {cell.id for cell in loaded.cells}
    for cell in loaded.cells:
        refuse_equal_parrots(cell.defense.config)


def refuse_equal_parrots(config: Any) -> None:
    """As `check` of `sande` and of `sande_rounds`, for a chain's removals, too."""
    for each in (config, getattr(config, "sande_p", None), getattr(config, "sande_rounds_p", None)):
        for count in ("restarts", "fresh"):
            if hasattr(each, count):
                sande.apart(each.parrot_initial, getattr(each, count), count, count)


# Sweeps inside methods, and unions.


def test_a_swept_setting_that_a_method_lacks_leaves_that_method_once(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", "sande"], "defense.parrot_position": [2, 5]})
    assert [(cell.defense.name, getattr(cell.defense.config, "parrot_position", None)) for cell in cells(path)] == [
        ("none", None),
        ("sande", 2),
        ("sande", 5),
    ]


def test_a_swept_setting_that_every_method_lacks_is_refused(grid_file: GridFile) -> None:
    path = grid_file(sweep={"defense": ["none", "sft"], "defense.parrot_position": [2, 5]})
    assert "sweep: no defense of this grid has the setting 'defense.parrot_position'" in sentence(path)


def union(folder: Path, name: str = "union", **values: Any) -> Path:
    return written(folder / f"{name}.yaml", values)


def test_a_union_holds_the_cells_of_its_grids_each_once_and_says_where_each_stands(
    grid_file: GridFile, tmp_path: Path
) -> None:
    grid_file("first", sweep={"seed": [0, 1]})
    grid_file("second", sweep={"seed": [1, 2]})
    loaded = load_grid(union(tmp_path, about="both", include=["first", "second"]))
    assert (loaded.name, loaded.about, loaded.scale) == ("union", "both", "")
    assert [cell.attack_seed for cell in loaded.cells] == [0, 1, 2]
    parts = [loaded.parts[cell.id] for cell in loaded.cells]
    assert parts == [("first",), ("first", "second"), ("second",)]


def test_the_cells_of_a_plain_grid_stand_in_it(grid_file: GridFile) -> None:
    loaded = load_grid(grid_file(sweep={"seed": [0, 1]}))
    assert set(loaded.parts.values()) == {("small",)}


def test_a_union_of_unions_has_every_grid_once(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first")
    grid_file("second", seed=1)
    union(tmp_path, "inner", include=["first", "second"])
    loaded = load_grid(union(tmp_path, include=["inner", "first"]))
    assert [(cell.attack_seed, loaded.parts[cell.id]) for cell in loaded.cells] == [(0, ("first",)), (1, ("second",))]


def test_a_union_takes_resources_of_its_own_and_overrides(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first", resources={"workers": 4}, defense="sande")
    grid_file("second", seed=1)
    path = union(tmp_path, include=["first", "second"], resources={"cpus": 2})
    loaded = load_grid(path, overrides=["resources.gpus=1", "defense.parrot_length=3", "data.rows=7"])
    given = loaded.resources.default
    assert (given.workers, given.cpus, given.gpus) == (1, 2, 1)
    assert [cell.data.rows for cell in loaded.cells] == [7, 7]
    assert loaded.cells[0].defense.config.parrot_length == 3


def test_the_sweep_of_a_union_goes_over_all_of_its_grids(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first", sweep={"defense": ["none", "sft"], "seed": [0]})
    grid_file("second", data={"rows": 7}, sweep={"attack, data.test_rows": [["sentence_trigger", 9]]})
    union(tmp_path, "inner", include=["second"], sweep={"attack.poison_rate": [0.5, 0.25]})
    loaded = load_grid(union(tmp_path, include=["first", "inner"], sweep={"seed": [1, 2], "attack.poison_rate": [0.5]}))
    found = [(cell.defense.name, cell.attack_seed, cell.data.rows, cell.data.test_rows) for cell in loaded.cells]
    assert found == [
        *[(name, seed, 16, 50) for name in ("none", "sft") for seed in (1, 2)],
        *[("none", seed, 7, 9) for seed in (1, 2)],
    ]
    assert {cell.attack.config.poison_rate for cell in loaded.cells} == {0.5}, "the outermost is the last word"


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ({"seed": [0, 1]}, {"attack_seed": [3, 4]}, [(3, 0), (4, 0)]),
        ({"seed": [0, 1]}, {"attack_seed": [3], "defense_seed": [5]}, [(3, 5)]),
        ({"attack_seed": [0, 1], "defense_seed": [2]}, {"seed": [7]}, [(7, 7)]),
        ({"attack_seed": [0, 1], "defense_seed": [2]}, {"attack_seed": [7]}, [(7, 2)]),
        ({"seed, data.rows": [[0, 16], [1, 16]]}, {"attack_seed": [3]}, [(3, 0)]),
        ({"attack_seed, defense_seed": [[0, 1], [1, 2]]}, {"seed": [4]}, [(4, 4)]),
    ],
)
def test_seeds_of_the_sweep_of_a_union_replace_those_of_its_grids(
    grid_file: GridFile,
    tmp_path: Path,
    inner: dict[str, Any],
    outer: dict[str, Any],
    expected: list[tuple[int, int]],
) -> None:
    grid_file("first", defense="sft", sweep=inner)
    assert values(union(tmp_path, include=["first"], sweep=outer), "attack_seed", "defense_seed") == expected


def test_an_axis_of_several_fields_keeps_those_that_the_union_does_not_sweep(
    grid_file: GridFile, tmp_path: Path
) -> None:
    grid_file("first", sweep={"data.rows, seed, data.test_rows": [[5, 0, 50], [7, 1, 60]]})
    path = union(tmp_path, include=["first"], sweep={"attack_seed": [3]})
    assert values(path, "data.rows", "attack_seed", "data.test_rows") == [(5, 3, 50), (7, 3, 60)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sweep": []}, "sweep: expected paths with lists of values, got []"),
        ({"sweep": False}, "sweep: expected paths with lists of values, got False"),
        ({"resources": False}, "resources: expected settings as 'key: value', got False"),
        ({"resources": []}, "resources: expected settings as 'key: value', got []"),
        ({"search": False}, "search: expected settings as 'key: value', got False"),
        ({"rules": False}, "rules: expected a list of rules with 'where' and 'set', got False"),
        ({"asr_floor": True}, "asr_floor is True, not a percentage from 0 to 100"),
    ],
)
def test_a_section_that_is_no_section_is_one_sentence(grid_file: GridFile, changes: dict[str, Any], said: str) -> None:
    assert said in sentence(grid_file(**changes))


def test_a_section_may_be_left_blank(grid_file: GridFile) -> None:
    assert load_grid(grid_file(sweep=None, resources=None, search=None, rules=None)).cells


def test_only_chooses_among_the_cells_of_a_union(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first", defense="sft")
    grid_file("second", defense="sande")
    loaded = load_grid(union(tmp_path, include=["first", "second"]), only=["defense=sande"])
    assert [cell.defense.name for cell in loaded.cells] == ["sande"]
    assert loaded.name == "union--only-defense=sande"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"include": ["third"]}, ["include: no grid 'third' here; there are: first, union"]),
        ({"include": "first"}, ["include is 'first', not a list of names"]),
        ({"include": []}, ["include is [], not a list"]),
        ({"include": [3]}, ["include is [3], not a list"]),
        ({"include": ["union"]}, ["circular include: union -> union; remove one"]),
        ({"include": ["first"], "seed": 3}, ["no settings of its own", "'seed'"]),
        ({"include": ["first"], "sweep": {"seed": 3}}, ["sweep: 'seed' needs a list of at least one value, got 3"]),
        ({"include": ["first"], "scale": ["a"]}, ["scale is ['a'], not the name of one"]),
        ({"include": ["first"], "resources": {"worker": 3}}, ["resources: unknown setting 'worker'"]),
    ],
)
def test_a_mistake_in_a_union_is_one_sentence(
    grid_file: GridFile, tmp_path: Path, values: dict[str, Any], parts: list[str]
) -> None:
    grid_file("first")
    path = union(tmp_path, **values)
    text = sentence(path)
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert part in text


def test_a_circle_of_two_grids_is_found(tmp_path: Path) -> None:
    union(tmp_path, "inner", include=["union"])
    assert "circular include: union -> inner -> union" in sentence(union(tmp_path, include=["inner"]))


def test_a_mistake_in_an_included_grid_names_that_grid(grid_file: GridFile, tmp_path: Path) -> None:
    first = grid_file("first", sed=1)
    assert sentence(union(tmp_path, include=["first"])).startswith(f"{first}: unknown setting 'sed'")


def test_an_override_that_no_cell_of_a_union_takes_is_refused(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("first")
    path = union(tmp_path, include=["first"])
    text = sentence(path, overrides=["defense.parrot_length=3"])
    assert text.startswith(f"{path}: --set defense.parrot_length: no defense of this grid has that setting")


# Rules and scales.


def written(path: Path, values: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def scale(folder: Path, name: str, *rules: dict[str, Any], **more: Any) -> Path:
    return written(folder / "scales" / f"{name}.yaml", {"about": "a scale", "rules": list(rules), **more})


def cells(path: Path, **options: Any) -> tuple[Cell, ...]:
    return load_grid(path, **options).cells


def test_rules_apply_in_order_to_the_cells_that_match(grid_file: GridFile) -> None:
    rules = [
        {"where": {"seed": [0, 1]}, "set": {"data.rows": 5}},
        {"where": {"seed": 1, "data.rows": 5}, "set": {"data.rows": 6, "data.test_rows": 3}},
    ]
    path = grid_file(sweep={"seed": [0, 1, 2]}, rules=rules)
    assert values(path, "data.rows", "data.test_rows") == [(5, 50), (6, 3), (16, 50)]


def test_overrides_come_after_rules(grid_file: GridFile) -> None:
    path = grid_file(rules=[{"set": {"data.rows": 5}}])
    assert values(path, "data.rows", overrides=["data.rows=9"]) == [(9,)]


def test_a_rule_that_makes_cells_equal_keeps_one(grid_file: GridFile) -> None:
    path = grid_file(sweep={"seed": [0, 1, 2]}, rules=[{"where": {"seed": 2}, "set": {"seed": 0}}])
    assert values(path, "seed") == [(0,), (1,)]


def test_scales_replace_the_grids_own_and_name_the_results(grid_file: GridFile, tmp_path: Path) -> None:
    scale(tmp_path, "large", {"set": {"data.rows": 90}})
    scale(tmp_path, "little", {"set": {"data.rows": 9}})
    path = grid_file(scale="large", rules=[{"set": {"data.rows": 1, "data.test_rows": 2}}])
    for asked, name, used, rows in [
        (None, "small", "large", 90),
        ("large", "small", "large", 90),
        ("little", "small-little", "little", 9),
    ]:
        loaded = load_grid(path, scale=asked)
        assert (loaded.name, loaded.scale, loaded.cells[0].data.rows) == (name, used, rows)
        assert loaded.cells[0].data.test_rows == 2, "the grid's own rules hold at every scale"
        assert loaded.parts[loaded.cells[0].id] == ("small",), "parts are named without the scale"


def test_a_grid_without_scale_can_be_given_one(grid_file: GridFile, tmp_path: Path) -> None:
    scale(tmp_path, "little", {"set": {"data.rows": 9}})
    path = grid_file()
    assert (load_grid(path).name, load_grid(path).scale) == ("small", "")
    loaded = load_grid(path, scale="little")
    assert (loaded.name, loaded.scale) == ("small-little", "little")


def test_the_outermost_scale_that_is_given_holds(grid_file: GridFile, tmp_path: Path) -> None:
    scale(tmp_path, "large", {"set": {"data.rows": 90}})
    scale(tmp_path, "little", {"set": {"data.rows": 9}})
    grid_file("first", scale="large")
    inherited, own = union(tmp_path, include=["first"]), union(tmp_path, "own", include=["first"], scale="little")
    assert [(g.name, g.scale, g.cells[0].data.rows) for g in map(load_grid, (inherited, own))] == [
        ("union", "large", 90),
        ("own", "little", 9),
    ]
    assert load_grid(inherited, scale="little").name == "union-little"
    assert load_grid(own, scale="little").name == "own"


def test_grids_of_different_scales_need_one_for_their_union(grid_file: GridFile, tmp_path: Path) -> None:
    scale(tmp_path, "large")
    scale(tmp_path, "little")
    grid_file("first", scale="large")
    grid_file("second", scale="little", seed=1)
    path = union(tmp_path, include=["first", "second"])
    assert "different scales (large, little); give one as 'scale'" in sentence(path)
    assert load_grid(path, scale="little").name == "union-little"


@pytest.mark.parametrize("name", ["huge", "../large", "."])
def test_an_unknown_scale_lists_those_there_are(grid_file: GridFile, tmp_path: Path, name: str) -> None:
    scale(tmp_path, "large")
    scale(tmp_path, "little")
    path = grid_file()
    text = sentence(path, scale=name)
    assert text.startswith(f"{path}: no scale is called '{name}'; there are: large, little")


def test_an_unknown_scale_where_there_are_none_says_where_they_would_be(grid_file: GridFile, tmp_path: Path) -> None:
    line = sentence(grid_file(scale="huge"))
    assert f"there are none in {tmp_path / 'scales'}; use 'sande-bench init GRID FOLDER'" in line


def test_a_mistake_in_a_scale_names_its_file(grid_file: GridFile, tmp_path: Path) -> None:
    path = scale(tmp_path, "large", {"set": {"data.row": 3}}, extra=3)
    assert sentence(grid_file(scale="large")).startswith(
        f"{path}: unknown setting 'extra'; valid settings: about, rules"
    )
    path = scale(tmp_path, "large", {"set": {"data.row": 3}})
    assert sentence(grid_file(scale="large")).startswith(f"{path}: rule 1, set: data has no setting 'row'")


def test_a_value_that_a_scale_gets_wrong_is_said_with_the_scale(grid_file: GridFile, tmp_path: Path) -> None:
    scale(tmp_path, "large", {"set": {"data.rows": "many"}})
    path = grid_file()
    assert sentence(path, scale="large").startswith(f"{path} at scale large: data: 'rows' is 'many'")
