"""Words in a grid that stand for entries of the registry."""

from typing import Any

import pytest

from benchmark.grid import wildcards
from benchmark.grid.load import load_grid
from sande import registry
from sande.errors import UserError
from tests.benchmark.helpers import GridFile


def defenses(path: Any) -> list[str]:
    return [cell.defense.name for cell in load_grid(path).cells]


def test_all_is_every_entry_in_the_order_of_names() -> None:
    for kind in ("attacks", "defenses", "metrics"):
        assert wildcards.expand(kind, ["all"]) == list(registry.names(kind))


def test_all_stands_where_it_is_written_for_what_its_list_does_not_name() -> None:
    found = wildcards.expand("defenses", ["none", "all", {"name": "osft", "response_tokens": 5}])
    assert found[0] == "none"
    assert found[-1] == {"name": "osft", "response_tokens": 5}
    assert found[1:-1] == sorted({*registry.names("defenses")} - {"none", "osft"})
    named = list(registry.names("attacks"))
    assert wildcards.expand("attacks", [*named, "all", {"name": "all", "poison_rate": 0}]) == named


def test_settings_of_a_word_reach_the_entries_that_have_them() -> None:
    found = wildcards.expand("defenses", [{"name": "all", "parrot_length": 4}])
    assert {"name": "sande", "parrot_length": 4} in found
    assert "sft" in found
    with pytest.raises(UserError, match=r"^defense all: .*'parrots'; see 'sande-bench show defenses NAME'$"):
        wildcards.expand("defenses", [{"name": "all", "parrots": 4}])


def test_a_sweep_over_all_has_a_cell_for_each(grid_file: GridFile) -> None:
    names = list(registry.names("defenses"))
    assert defenses(grid_file(sweep={"defense": "all"})) == names
    assert defenses(grid_file(sweep={"defense": ["sft", "all"]})) == ["sft", *(name for name in names if name != "sft")]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"sweep": {"defense": "every"}}, "sweep: 'defense'"),
        ({"sweep": {"defense": ["every"]}}, "no defense is called 'every'"),
    ],
)
def test_an_unknown_word_lists_the_entries(grid_file: GridFile, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(UserError, match=place) as caught:
        load_grid(grid_file(**changes))
    assert ", ".join(registry.names("defenses")) in str(caught.value)


def test_all_outside_of_a_sweep_is_refused(grid_file: GridFile) -> None:
    with pytest.raises(UserError, match=r"defense: 'all' is a word of a sweep; .* in 'sweep'"):
        load_grid(grid_file(defense="all"))


def test_metrics_of_durability_are_those_that_declare_it(grid_file: GridFile) -> None:
    rules = [{"where": {"metrics": "asr_moved"}, "set": {"seed": 7}}]
    durability = registry.durability_metrics()
    assert "asr_int4" in durability
    listed = ["asr", {"name": "asr_int4", "decoding": {"prompts": 5}}, "durability"]
    (cell,) = load_grid(grid_file(metrics=listed, rules=rules)).cells
    others = [name for name in durability if name != "asr_int4"]
    assert [metric.name for metric in cell.metrics] == ["asr", "asr_int4", *others]
    assert cell.metrics[1].config.decoding.prompts == 5
    assert cell.attack_seed == 7, "a rule sees the metrics that the word stands for"
