"""Worker groups of different sizes in one run: each kind of stages has its own, and rows are those of one worker."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.helpers import Workplace
from tests.integration.test_workers import ATTACK, EXACT, manifest

pytestmark = pytest.mark.slow

SFT = {"name": "sft", "training": EXACT}
RUNS: dict[str, Any] = {
    "alone": {"cpus": 1},
    # Both workers of the group get a CPU, and the others, which run before and after it, all there are.
    "attack": {"attack": {"workers": 2, "cpus": 1}},
    "defend": {"defend": {"workers": 2, "cpus": 1}, "attack": {"cpus": 2}},
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Workplace]:
    """Return the place of one of RUNS: a victim and a defended model, each measured."""
    root = tmp_path_factory.mktemp("resources")

    @functools.cache
    def place_of(name: str) -> Workplace:
        (root / name).mkdir()
        place = Workplace(root / name)
        grid = place.grid("mixed", attack=ATTACK, defense=SFT, resources=RUNS[name])
        done = place.run(grid, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return place

    return place_of


def rows(place: Workplace) -> list[dict[str, Any]]:
    return place.rows(place.root / "mixed.yaml")


@pytest.mark.parametrize("group", ["attack", "defend"])
def test_each_kind_of_stages_has_its_own_number_of_workers(run_of: Callable[[str], Workplace], group: str) -> None:
    for kind in ("attack", "defend", "evaluate"):
        numbers = [manifest(folder)["workers"] for folder in run_of(group).artifacts(kind)]
        assert len(numbers) == {"attack": 1, "defend": 1, "evaluate": 4}[kind]
        assert set(numbers) == {2 if kind == group else 1}
    defended = [row for row in rows(run_of(group)) if row["defense"] == "sft"]
    expected = {"attack": (2, 1, 1), "defend": (1, 2, 1)}[group]
    assert {(row["attack_workers"], row["defense_workers"], row["workers"]) for row in defended} == {expected}


@pytest.mark.parametrize("group", ["attack", "defend"])
def test_rows_are_those_of_one_worker(run_of: Callable[[str], Workplace], group: str) -> None:
    def scores(place: Workplace) -> list[tuple[Any, ...]]:
        return sorted((row["cell"], row["metric"], row["status"], row["value"]) for row in rows(place))

    assert scores(run_of(group)) == scores(run_of("alone"))
    assert len(scores(run_of(group))) == 4


@pytest.mark.parametrize("group", ["attack", "defend"])
@pytest.mark.parametrize("kind", ["attack", "defend"])
def test_losses_and_weights_are_nearly_those_of_one_worker(
    run_of: Callable[[str], Workplace], group: str, kind: str
) -> None:
    alone = {folder.name: folder for folder in run_of("alone").artifacts(kind)}
    others = {folder.name: folder for folder in run_of(group).artifacts(kind)}
    assert alone.keys() == others.keys(), "the number of workers is in no key"
    for key, folder in alone.items():
        training = {"attack": "attack", "defend": "sft"}[kind]
        one, two = (manifest(each[key])["facts"][training] for each in (alone, others))
        assert two["last_loss"] == pytest.approx(one["last_loss"], rel=1e-3)
        weights, nearly = (load_file(each / "model.safetensors") for each in (folder, others[key]))
        for name in weights:
            torch.testing.assert_close(nearly[name].float(), weights[name].float(), atol=4e-4, rtol=1e-2)
