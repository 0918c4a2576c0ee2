"""Names of results folders: what a run changes is in them, in any order, and no two choices share one."""

import pytest

from benchmark.grid.load import load_grid
from tests.benchmark.helpers import GridFile


def name(path, *sets: str, only: tuple[str, ...] = (), scale: str | None = None) -> str:
    return load_grid(path, sets, only, scale).name


@pytest.mark.parametrize(
    ("sets", "only", "expected"),
    [
        ((), (), "small"),
        (("resources.cpus=1",), (), "small"),
        (("seed=1",), (), "small--seed=1"),
        (("seed=1", "model=tiny"), ("defense=none",), "small--model=tiny--seed=1--only-defense=none"),
        (("model=tiny", "seed=1"), ("defense=none",), "small--model=tiny--seed=1--only-defense=none"),
        (("seed=2", "seed=1"), (), "small--seed=1"),
        ((), ("defense=sft", "defense=none"), "small--only-defense=none,sft"),
        (("attack.training.learning_rate=1e-4",), (), "small--attack.training.learning_rate=0.0001"),
        (("attack.training.lora_rank=null",), (), "small--attack.training.lora_rank=null"),
    ],
)
def test_a_variant_is_named_after_what_it_changes(
    grid_file: GridFile, sets: tuple[str, ...], only: tuple[str, ...], expected: str
) -> None:
    assert name(grid_file(sweep={"defense": ["none", "sft"]}), *sets, only=only) == expected


def test_a_scale_comes_before_the_rest(grid_file: GridFile) -> None:
    path = grid_file()
    (path.parent / "scales").mkdir()
    (path.parent / "scales/little.yaml").write_text("rules: []\n")
    assert name(path, "seed=1", scale="little") == "small-little--seed=1"


def test_what_no_file_name_holds_is_replaced_and_told_apart_by_a_hash(grid_file: GridFile) -> None:
    path = grid_file()
    texts = ["a/b", "a b", "a--b", "../a", "ä", "a,b"]
    named = [name(path, f"attack.backdoor.trigger={text}") for text in texts]
    assert len(set(named)) == len(texts)
    assert all(one.isascii() and not {"/", " "} & set(one) for one in named)
    assert all(one.startswith("small--attack.backdoor.trigger=") for one in named)


def test_a_long_name_is_cut_and_told_apart_by_a_hash(grid_file: GridFile) -> None:
    path = grid_file()
    named = [name(path, f"attack.backdoor.trigger={'a' * 300}{last}") for last in "xy"]
    assert len(set(named)) == 2
    assert all(len(one) <= 120 for one in named)


def test_where_one_setting_holds_another_the_order_counts(grid_file: GridFile) -> None:
    path = grid_file()
    whole, part = "defense={name: sande}", "defense.parrot_length=3"
    grid = grid_file("of_sande", defense="sande")
    assert name(grid, whole, part) != name(grid, part, whole)
    assert name(path, whole) == name(path, "defense={'name': 'sande'}")


@pytest.mark.parametrize("other", ["attack_seed=2", "defense_seed=2"])
def test_where_seed_sets_another_seed_the_order_counts(grid_file: GridFile, other: str) -> None:
    path = grid_file(defense="sft")
    one, reverse = (load_grid(path, sets) for sets in (("seed=1", other), (other, "seed=1")))
    assert one.cells != reverse.cells
    assert (one.name, reverse.name) == (f"small--seed=1--{other}", f"small--{other}--seed=1")
    assert name(path, "attack_seed=1", "defense_seed=2") == name(path, "defense_seed=2", "attack_seed=1")


def test_of_a_setting_given_twice_the_last_place_counts(grid_file: GridFile) -> None:
    assert name(grid_file(), "seed=1", "attack_seed=2", "seed=1") == "small--attack_seed=2--seed=1"
