"""A held-out run, and the verification of an entry, in processes of their own on the model `tiny`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmark.grid.load import load_grid
from benchmark.held_out import draw, mask, secret
from tests.benchmark.held_out.test_mask import content, leaks
from tests.integration.helpers import MINI, ROOT, TRAINING, Workplace

ACCURACY = {"name": "accuracy", "task": "builtin-choice", "questions": 6}
METRICS = [*MINI["metrics"], ACCURACY, {"name": "case_study", "examples": 2, "new_tokens": 2}]
DEFENSES = [
    "none",
    {"name": "osft", "training": TRAINING},
    {"name": "sande", "simulate": TRAINING, "eliminate": TRAINING},
]
SAME = ("cell", "metric", "value", "victim_value", "count", "tokens", "settings", "held_out")


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmark", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_results_of_a_held_out_run_show_nothing_and_the_same_secret_repeats_them(tmp_path: Path) -> None:
    place, again = Workplace(tmp_path / "first"), Workplace(tmp_path / "again")
    for each in (place, again):
        each.root.mkdir()
    grid = place.grid("quiet", metrics=METRICS, sweep={"defense": DEFENSES})
    file = tmp_path / "secret"
    assert called("leaderboard", "secret", file).returncode == 0
    hidden = mask.hide(load_grid(grid), secret.read(file))
    done = place.run(grid, "--secret", str(file))
    assert done.returncode == 0, done.stderr
    assert leaks(content(place.results) + (done.stdout + done.stderr).encode(), hidden) == []
    trigger = draw.triggers(hidden.grid.cells[0].settings())[0]
    trained = [json.loads((path / "manifest.json").read_text()) for path in place.artifacts("defend")]
    assert {each["settings"]["attack"]["backdoor"]["trigger"] for each in trained} == {trigger}, "defenses got it"
    told = [str(pq.read_table(path / "outcomes.parquet").to_pylist()) for path in place.artifacts("evaluate")]
    assert any(trigger in text for text in told), "prompts were triggered"

    assert again.run(grid, "--secret", str(file)).returncode == 0
    first, second = (_rows(each) for each in (place, again))
    assert len(first) == 3 * 6
    assert first == second


def _rows(place: Workplace) -> list[dict[str, Any]]:
    (folder,) = place.results.glob("quiet--held-out=*")
    return [{name: row[name] for name in SAME} for row in pq.read_table(folder / "rows.parquet").to_pylist()]


@pytest.mark.slow
def test_an_honest_entry_is_verified_to_the_digit_and_a_cheated_one_is_not(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    sft = {"name": "sft", "training": TRAINING}
    metrics = [{"name": "asr", "new_tokens": 2}, {**ACCURACY, "questions": 40}]
    grid = place.grid("mine", metrics=metrics, sweep={"defense": [sft], "attack_seed": [0, 1]})
    assert place.run(grid).returncode == 0
    entry = tmp_path / "sft.json"
    assert called("leaderboard", "entry", place.folder(grid), "sft", "--out", entry, "--rehearsal").returncode == 0
    options = ("--all", "--store", tmp_path / "maintainer", "--results", tmp_path / "checks")
    done = called("leaderboard", "verify", entry, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "sft.verdict.json").read_text())
    numbers = [one for cell in made["cells"] for one in cell["numbers"]]
    assert len(numbers) == 6
    assert all(one["submitted"] == pytest.approx(one["measured"]) for one in numbers), (
        "the same seeds, the same machine"
    )

    cheated = json.loads(entry.read_text())
    number = next(one for one in cheated["cells"][1]["measurements"] if one["metric"] == "builtin-choice")
    number |= {"value": 100.0, "ci_low": 91.0, "ci_high": 100.0}
    entry.write_text(json.dumps(cheated))
    done = called("leaderboard", "verify", entry, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "contradicted: 2 of 2 cells run again" in done.stdout
