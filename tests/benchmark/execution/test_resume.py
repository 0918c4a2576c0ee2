"""A process that is really killed in the middle of a stage, and the next one, which does the rest of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import cell, stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TRAINING = {"max_steps": 4, "learning_rate": 1e-3, "batch_size": 8}
ATTACK = {"name": "sentence_trigger", "poison_rate": 0.25, "training": TRAINING}
DEFENSES: dict[str, Any] = {
    "sft": {"name": "sft", "training": TRAINING},
    "sande": {"name": "sande", "simulate": TRAINING, "eliminate": TRAINING},
}

# Does a stage, keeps its weights in float32 too, and kills itself where it is told to: at the end of its nth step, or
# while its nth checkpoint has all of its files but is not yet marked as whole.
CHILD = """
import os, signal, sys
from pathlib import Path
from safetensors.torch import save_file
from transformers import TrainerCallback
from benchmark.execution.stages import train
from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from sande.models import loading
from sande.training import checkpoints

text, root, where, nth = sys.argv[1:]
left = int(nth)
save = loading.save

def both(lm, folder):
    save_file({name: weight.detach().clone() for name, weight in lm.model.named_parameters()}, folder / "float32")
    save(lm, folder)

def count_down():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

class Kill(TrainerCallback):
    def on_step_end(self, *_, **__):
        print("step", flush=True)
        if where == "step":
            count_down()

def prepare(trainer):
    trainer.add_callback(Kill())
    return trainer

loading.save = both
complete = checkpoints.Progress.complete
if where == "checkpoint":
    checkpoints.Progress.complete = lambda self, step: (count_down(), complete(self, step))
train(Stage.from_json(text), LocalStore(Path(root)), prepare, lambda line: None, rank=0, interval=0.0)
"""


def do(store: LocalStore, of: Stage, where: str = "", nth: int = 0) -> tuple[int, int]:
    """Exit code of a process that does the stage, and how many steps it took."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, of.to_json(), str(store.root), where, str(nth)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.split().count("step")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, LocalStore]:
    """One in which nothing is disturbed, and one in which the victim is the same and every process is killed once."""
    roots = tmp_path_factory.mktemp("resume")
    return LocalStore(roots / "undisturbed"), LocalStore(roots / "killed")


def test_an_attack_killed_while_it_writes_a_checkpoint(stores: tuple[LocalStore, LocalStore]) -> None:
    check(stores, stage(cell(attack=ATTACK), "attack"), [("checkpoint", 2)], steps=[2, 3])


@pytest.mark.parametrize(
    ("name", "kills", "steps"),
    [
        ("sft", [("step", 3)], [3, 2]),
        # In simulate; then in eliminate, simulate being done; and what is done is not done again.
        ("sande", [("step", 3), ("step", 5)], [3, 5, 2]),
    ],
)
def test_a_defense_killed_while_it_trains(
    stores: tuple[LocalStore, LocalStore], name: str, kills: list[tuple[str, int]], steps: list[int]
) -> None:
    victim = stage(cell(attack=ATTACK), "attack")
    for store in stores:
        if not store.has("attack", victim.key):
            do(store, victim)
    check(stores, stage(cell(attack=ATTACK, defense=DEFENSES[name]), "defend"), kills, steps)


def check(stores: tuple[LocalStore, LocalStore], of: Stage, kills: list[tuple[str, int]], steps: list[int]) -> None:
    """Every kill leaves no artifact; the process after them does the rest, and its artifact has the same bits."""
    undisturbed, disturbed = stores
    assert do(undisturbed, of)[0] == 0
    taken = []
    for where, nth in kills:
        code, count = do(disturbed, of, where, nth)
        assert code == -signal.SIGKILL
        assert not disturbed.has(of.kind, of.key)
        taken.append(count)
    code, count = do(disturbed, of)
    assert code == 0
    assert [*taken, count] == steps
    for name in ("float32", "model.safetensors"):
        expected, found = (load_file(store.path(of.kind, of.key) / name) for store in stores)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    expected, found = (without_seconds(store.manifest(of.kind, of.key)["facts"]) for store in stores)
    assert found == expected
    assert not list(disturbed.root.glob("checkpoints/*/*")), "they go when the model is stored"


def without_seconds(facts: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(facts), object_hook=lambda found: {k: v for k, v in found.items() if k != "seconds"})
