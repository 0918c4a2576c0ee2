"""The opening of a report: which defenses work in no, some or every run, and for which a loss of utility is shown."""

from pathlib import Path

import pytest

from benchmark.grid.cell import Cell
from benchmark.report import page
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import ACCURACY, cell, finish, report_folder

pytestmark = pytest.mark.usefixtures("few_pixels")
METRICS = ["asr", ACCURACY]


def opening(folder: Path) -> str:
    """Return the page before its first table."""
    page.write(folder)
    return (folder / "README.md").read_text(encoding="utf-8").split("### ")[0]


def measured(store: LocalStore, defense: str, seed: int, asr: int, right: int = 30) -> Cell:
    """Return a finished cell with so many successes of 50, whose victim has 50 and 30."""
    of = cell(defense=defense, seed=seed, metrics=METRICS)
    return finish(store, of, {"asr": 50, "builtin-choice": 30}, {"asr": asr, "builtin-choice": right})


def test_it_says_in_which_runs_a_defense_fails_and_what_it_costs(store: LocalStore, tmp_path: Path) -> None:
    asr = {"none": (50, 50), "sft": (45, 3), "osft": (0, 2), "nad": (0, 25), "fine_mixing": (1, 2)}
    cells = [
        measured(store, name, seed, value, right=0 if name == "osft" else 30)
        for name, values in asr.items()
        for seed, value in enumerate(values)
    ]
    said = opening(report_folder(store, tmp_path / "r", *cells))
    assert "2 victims answer 100.0 % of the triggered prompts as planted. At most 5 % is left\n" in said
    assert "- in every run by `fine_mixing` (2 of 2), `osft` (2 of 2; utility lost in 1 of 1);\n" in said, (
        "cheapest first"
    )
    assert "- in some runs by `nad` (1 of 2);\n- in no run by `sft` (0 of 2);\n" in said
    pairs = "victim (of all its attack seeds together) and task; by chance alone it is in 1 pair of 40."
    assert f"- utility is lost where a loss is shown, of pairs of {pairs}" in said
    without = opening(report_folder(store, tmp_path / "none", *(one for one in cells if one.defense.name != "osft")))
    assert f"- a loss of utility is shown in no pair of {pairs}" in without
    only = opening(report_folder(store, tmp_path / "one", *(one for one in cells if one.attack_seed == 0)))
    assert "of pairs of victim and task; by chance" in only


def test_it_names_the_attack_seeds_of_a_defense_that_lacks_some(store: LocalStore, tmp_path: Path) -> None:
    runs = [("none", 0, 50), ("none", 1, 50), ("sft", 0, 45), ("sft", 1, 45), ("osft", 1, 0)]
    said = opening(report_folder(store, tmp_path / "r", *(measured(store, *run) for run in runs)))
    assert "- in every run by `osft` (1 of 1, attack seed 1 alone);\n- in no run by `sft` (0 of 2);\n" in said


def test_weak_victims_and_twins_do_not_count(store: LocalStore, tmp_path: Path) -> None:
    weak = [finish(store, cell(defense=name, metrics=["asr"]), {"asr": 3}, {"asr": 0}) for name in ("none", "sft")]
    assert "What it shows" not in opening(report_folder(store, tmp_path / "weak", *weak))
    twin = finish(store, cell(attack={"name": "sentence_trigger", "poison_rate": 0}, metrics=["asr"]), {"asr": 50})
    assert "What it shows" not in opening(report_folder(store, tmp_path / "twin", twin))


def test_a_victim_that_is_repaired_with_rows_of_two_sets_is_one(store: LocalStore, tmp_path: Path) -> None:
    removals = ({"name": name, "rows": 16} for name in ("builtin-short", "builtin-explained"))
    cells = [finish(store, cell(removal=removal, metrics=["asr"]), {"asr": 50}) for removal in removals]
    assert "1 victim answers 100.0 %" in opening(report_folder(store, tmp_path / "r", *cells))
