"""The leaderboard's grid on the model `tiny`: every attack under every defense, and the board that is made of it."""

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from sande import registry
from tests.integration.helpers import ROOT, Workplace

SMALL = (
    "resources.cpus=1",
    "asr_floor=0",  # of so few steps no victim has a backdoor to speak of
    "data.rows=200",
    "data.test_rows=10",
    "removal.rows=32",
    "attack.training.max_steps=20",
)


@pytest.mark.slow
def test_every_attack_meets_every_defense_and_no_cell_fails(place: Workplace) -> None:
    options = (part for setting in SMALL for part in ("--set", setting))
    done = place.run(ROOT / "grids" / "leaderboard.yaml", "--scale", "tiny", *options, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    attacks, defenses = registry.names("attacks"), registry.names("defenses")
    rows = place.rows(Path("leaderboard-tiny"))
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["attack"], row["defense"]) for row in rows if row["poison_rate"]} == set(
        itertools.product(attacks, defenses)
    )
    assert {(row["attack"], row["defense"]) for row in rows if not row["poison_rate"]} == {
        (attack, "none") for attack in attacks
    }
    cells = {row["cell"] for row in rows}
    assert len(cells) == len(attacks) * (len(defenses) + 1)
    for metric in {row["metric"] for row in rows}:
        found = [row for row in rows if row["metric"] == metric]
        assert {row["cell"] for row in found} == cells
        assert all(0 <= row["value"] <= 100 and row["count"] > 0 for row in found)

    results, board = place.folder(Path("leaderboard-tiny")), place.root / "board"
    made = CliRunner().invoke(app, ["leaderboard", str(results), "--html", str(board), "--rehearsal"])
    assert made.exit_code == 0, made.output
    standings = pq.read_table(board / "leaderboard.parquet").to_pylist()
    assert {one["defense"] for one in standings} == set(defenses) - {"none"}
    assert {(one["victims"], one["cells"]) for one in standings} == {(len(attacks), len(attacks))}
    columns = [info for name in registry.names("metrics") for info in registry.metric_infos(name) if info.column]
    for one in standings:
        shown = [more["metric"] for more in one["more"]]
        assert len(shown) == len(columns)
        assert all(any(column.matched(name) for name in shown) for column in columns)
    assert len(list((board / "cells").iterdir())) == len(attacks) * (len(defenses) - 1)
