"""Artifacts damaged between two runs: the next run says so, makes them anew, and its rows are as before."""

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.helpers import TRAINING, Workplace

pytestmark = pytest.mark.slow


def of_defense(place: Workplace, kind: str, name: str) -> list[Path]:
    return [path for path in place.artifacts(kind) if f'"name": "{name}"' in (path / "manifest.json").read_text()]


def test_damaged_artifacts_are_made_anew(place: Workplace) -> None:
    grid = place.grid("damaged", sweep={"defense": ["none", {"name": "sft", "training": TRAINING}]})
    assert place.run(grid).returncode == 0
    rows, before = outcome(place, grid), set(place.manifests())

    (victim,), (defended,) = place.artifacts("attack"), place.artifacts("defend")
    weights = victim / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 16
    weights.write_bytes(content)  # is seen only when the defense, which is to be made anew, reads it
    os.truncate(defended / "model.safetensors", 1000)
    lost, cut, garbled, *_ = place.artifacts("evaluate")
    shutil.rmtree(lost)
    os.truncate(cut / "outcomes.parquet", 10)
    (garbled / "manifest.json").write_text("{")

    again = place.run(grid)
    assert again.returncode == 0, again.stdout + again.stderr
    assert outcome(place, grid) == rows
    assert {path for path in place.manifests() if not path.startswith("damaged/")} == before
    log = again.stdout.splitlines()
    for told in ("model.safetensors has 1000 bytes", "outcomes.parquet has 10 bytes", "manifest.json is garbled"):
        assert len([line for line in log if told in line and "quarantined" in line]) == 1, again.stdout
    assert any("model.safetensors has other content" in line for line in log)
    assert any("a damaged artifact was found" in line for line in log)
    assert len(list((place.store / "damaged").iterdir())) == 4
    assert place.unfinished() == []


def outcome(place: Workplace, grid: Path) -> list[tuple[object, ...]]:
    return [(row["cell"], row["metric"], row["status"], row["value"], row["victim_value"]) for row in place.rows(grid)]
