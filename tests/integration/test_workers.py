"""Attack and defense on a Ray Train worker group give what one process gives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.helpers import ROOT, TRAINING, Workplace, by_defense

pytestmark = pytest.mark.slow

EXACT = TRAINING | {"precision": "fp32", "max_steps": 4, "learning_rate": 1e-4}
ATTACK = {"name": "sentence_trigger", "poison_rate": 0.25, "training": EXACT}
DEFENSES = [
    {"name": "sande", "simulate": EXACT, "eliminate": EXACT},
    {"name": "nad", "teacher": EXACT, "training": EXACT, "attention_weight": 5.0},
    {"name": "dpo", "training": EXACT, "beta": 5.0, "preferences": {"name": "builtin-preferences", "pairs": 16}},
    {"name": "fine_mixing", "training": EXACT | {"lora_rank": 4}},
]
RUNS = {
    "attack": ["attack"],
    "sande": ["simulate", "eliminate"],
    "nad": ["teacher", "distil"],
    "dpo": ["dpo"],
    "fine_mixing": ["fine_mixing"],
}


def with_workers(root: Path, workers: int) -> Workplace:
    root.mkdir()
    place = Workplace(root)
    resources = {"workers": workers, "cpus": 1}
    grid = place.grid("workers", attack=ATTACK, sweep={"defense": DEFENSES}, resources=resources)
    done = place.run(grid, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Workplace]:
    root = tmp_path_factory.mktemp("workers")
    return with_workers(root / "one", 1), with_workers(root / "two", 2)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def artifact(place: Workplace, what: str) -> Path:
    """Of the attack, or of a defense by its name."""
    if what == "attack":
        (only,) = place.artifacts("attack")
        return only
    return next(
        folder for folder in place.artifacts("defend") if manifest(folder)["settings"]["defense"]["name"] == what
    )


@pytest.mark.parametrize("what", RUNS)
def test_two_workers_have_the_losses_of_one(places, what: str) -> None:
    one, two = (manifest(artifact(place, what))["facts"] for place in places)
    for run in RUNS[what]:
        assert two[run]["steps"] == one[run]["steps"] == 4
        assert two[run]["first_loss"] == pytest.approx(one[run]["first_loss"], rel=1e-4)
        assert two[run]["last_loss"] == pytest.approx(one[run]["last_loss"], rel=1e-4)


@pytest.mark.parametrize("what", RUNS)
def test_two_workers_have_nearly_the_weights_of_one(places, what: str) -> None:
    one, two = (load_file(artifact(place, what) / "model.safetensors") for place in places)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name].float(), one[name].float(), atol=2e-4, rtol=1e-2)


def test_both_workers_tokens_are_counted(places) -> None:
    one, two = (manifest(artifact(place, "attack"))["tokens"] for place in places)
    assert two == one


def test_an_error_in_a_worker_group_is_one_line_of_a_failed_row(places: tuple[Workplace, Workplace]) -> None:
    two = places[1]
    bad = {"name": "sft", "training": EXACT | {"learning_rate": 1e30}}
    uneven = {"name": "osft", "training": EXACT | {"batch_size": 7}}
    grid = two.grid("bad", attack=ATTACK, sweep={"defense": [bad, uneven]}, resources={"workers": 2, "cpus": 1})
    done: subprocess.CompletedProcess[str] = two.run(grid, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    rows = by_defense(two.rows(grid))
    assert {row["status"] for row in two.rows(grid)} == {"failed"}
    assert rows["sft"][0]["error"].startswith("stage sft: ")
    assert "\n" not in rows["sft"][0]["error"]
    assert rows["osft"][0]["error"].startswith("batch_size 7 is no multiple of")


RANK_1 = """
import sys
from pathlib import Path
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from sande import models
models.prepare("tiny", Path(sys.argv[1]))
torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
models.load("tiny", Path(sys.argv[1]))
"""


def test_a_model_made_before_the_group_starts_is_whole_for_every_worker(tmp_path: Path) -> None:
    # Within a process group, transformers' save_pretrained writes on rank 0 alone: it would be too late.
    done = subprocess.run(
        [sys.executable, "-c", RANK_1, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("tiny-*/model.safetensors"))) == 1
