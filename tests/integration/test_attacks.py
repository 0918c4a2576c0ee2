"""The grids on attacks and on durability, on the model `tiny`: every attack, every metric, and the twin."""

from pathlib import Path

import pytest

from tests.integration.helpers import ROOT, Workplace

SMALL = (
    "model=tiny",
    "resources.cpus=1",
    "data.rows=200",
    "data.test_rows=5",
    "data.max_tokens=null",
    "removal.rows=32",
    "removal.max_tokens=null",
    "attack.training.max_steps=2",
    "defense.training.max_steps=2",
    "defense.simulate.max_steps=2",
    "defense.eliminate.max_steps=2",
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cells"), [("attacks", 34), ("durability", 4)])
def test_the_grid_runs_and_a_twin_is_no_failed_attack(place: Workplace, name: str, cells: int) -> None:
    grid = ROOT / "grids" / f"{name}.yaml"
    done = place.run(grid, *(part for setting in SMALL for part in ("--set", setting)), timeout=1200)
    assert done.returncode == 0, done.stderr
    rows = place.rows(grid)
    assert len({row["cell"] for row in rows}) == cells
    # Victims of two steps have no backdoor, which is said; of the twin nothing was asked.
    assert {row["status"] for row in rows if row["poison_rate"] == 0} == {"ok"}
    assert {row["status"] for row in rows if row["poison_rate"] != 0} == {"attack_failed"}
    assert {row["count"] for row in rows if row["metric"] == "near_miss_rate"} == {5}
    assert "near_miss_rate" in (place.folder(Path(name)) / "README.md").read_text()
