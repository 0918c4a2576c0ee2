"""The grids on attacks and on durability, on the model `tiny`: every attack, every metric, and the twin."""

import json
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
@pytest.mark.parametrize(
    ("name", "cells", "only"), [("attacks", 114, ("--only", "attack_seed=70")), ("durability", 4, ())]
)
def test_the_grid_runs_and_a_twin_is_no_failed_attack(
    place: Workplace, name: str, cells: int, only: tuple[str, ...]
) -> None:
    grid = ROOT / "grids" / f"{name}.yaml"
    done = place.run(grid, *only, *(part for setting in SMALL for part in ("--set", setting)), timeout=1800)
    assert done.returncode == 0, done.stderr
    rows = place.rows(grid)
    assert len({row["cell"] for row in rows}) == cells
    # Planted answers of some objectives have no common beginning, which is said in place of that rate.
    said = {row["error"] for row in rows if row["status"] == "failed"}
    assert all("have no common beginning; read " in error for error in said), said
    assert not any(row["status"] == "failed" and row["metric"] == "asr" for row in rows)
    rows = [row for row in rows if row["status"] != "failed"]
    # Victims of two steps have no backdoor, which is said; of twins nothing was asked, and of victims that are silent.
    floors = {row["cell"]: json.loads(row["settings"]).get("asr_floor", 90) for row in rows}
    assert {row["status"] for row in rows if row["poison_rate"] == 0 or not floors[row["cell"]]} == {"ok"}
    assert {row["status"] for row in rows if row["poison_rate"] != 0 and floors[row["cell"]]} == {"attack_failed"}
    assert {row["count"] for row in rows if row["metric"] == "near_miss_rate"} == {5}
    assert "near_miss_rate" in (place.folder(Path(name)) / "README.md").read_text()
