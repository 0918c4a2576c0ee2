"""Attack, defense and evaluation on a Ray Train worker group give what one process gives."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
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


def with_workers(root: Path, workers: int, **more: Any) -> Workplace:
    root.mkdir()
    place = Workplace(root)
    resources = {"workers": workers, "cpus": 1, **more}
    grid = place.grid("workers", attack=ATTACK, sweep={"defense": DEFENSES}, resources=resources)
    done = place.run(grid, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return with_workers(tmp_path_factory.mktemp("workers") / "one", 1)


@pytest.fixture(scope="module")
def places(alone: Workplace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Workplace]:
    return alone, with_workers(tmp_path_factory.mktemp("workers") / "two", 2)


@pytest.fixture(scope="module", params=[{"sharding": "zero2", "offload": True}, {"sharding": "zero3"}])
def sharded(request: Any, alone: Workplace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Workplace]:
    """One worker, and two that hold a shard each."""
    pytest.importorskip("deepspeed")
    return alone, with_workers(tmp_path_factory.mktemp("sharded") / "two", 2, **request.param)


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
    same_losses(places, what)


def same_losses(places: tuple[Workplace, Workplace], what: str) -> None:
    one, two = (manifest(artifact(place, what))["facts"] for place in places)
    for run in RUNS[what]:
        assert two[run]["steps"] == one[run]["steps"] == 4
        assert two[run]["first_loss"] == pytest.approx(one[run]["first_loss"], rel=1e-4)
        assert two[run]["last_loss"] == pytest.approx(one[run]["last_loss"], rel=1e-4)


@pytest.mark.parametrize("what", RUNS)
def test_two_workers_have_nearly_the_weights_of_one(places, what: str) -> None:
    same_weights(places, what)


def same_weights(places: tuple[Workplace, Workplace], what: str) -> None:
    one, two = (load_file(artifact(place, what) / "model.safetensors") for place in places)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name].float(), one[name].float(), atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("what", RUNS)
def test_two_workers_with_a_shard_each_have_losses_and_weights_of_one(sharded, what: str) -> None:
    same_losses(sharded, what)
    same_weights(sharded, what)
    assert "deepspeed" in manifest(artifact(sharded[1], what))["versions"]


@pytest.mark.gpu
def test_two_gpus_have_the_losses_of_one(alone: Workplace, tmp_path: Path) -> None:
    """Over NCCL; on a machine with a GPU `alone` uses one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    same_losses((alone, with_workers(tmp_path / "two", 2, gpus=1)), "attack")


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
    assert rows["osft"][0]["error"].startswith("batch_size 7 is not a multiple of")


# As sitecustomize.py: in the process of one rank reading a prompt fails.
FAULTY = """
import functools, os, sys
import importlib.abc, importlib.util
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "sande.inference.generation":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            read = module._Decoding.read
            def faulty(*arguments):
                import ray.train
                if ray.train.get_context().get_world_rank() != {rank}:
                    return read(*arguments)
                if "{ending}" == "kill":
                    os.kill(os.getpid(), 9)
                raise RuntimeError("torn")
            module._Decoding.read = faulty
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""


RANK_1 = """
import sys
from pathlib import Path
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from sande.models import loading
loading.prepare("tiny", Path(sys.argv[1]))
torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
loading.load("tiny", Path(sys.argv[1]))
"""


def test_a_model_made_before_the_group_starts_is_whole_for_every_worker(tmp_path: Path) -> None:
    # Within a process group, transformers' save_pretrained writes on rank 0 alone: it would be too late.
    done = subprocess.run(
        [sys.executable, "-c", RANK_1, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("tiny-*/model.safetensors"))) == 1


# --- Evaluations ----------------------------------------------------------------------------------------------------

RELEARNING = {"name": "asr_after_relearning", "rows": [4], "training": {"max_steps": 3, "batch_size": 5}}
METRICS = [
    {"name": "asr", "new_tokens": 6, "batch_size": 4},
    {"name": "false_trigger_rate", "new_tokens": 6, "batch_size": 4},
    {"name": "asr_sampled", "new_tokens": 6, "batch_size": 4},
    {"name": "accuracy", "questions": 40, "batch_size": 4},
    {"name": "response_probability", "batch_size": 4},
    RELEARNING | {"decoding": {"new_tokens": 6, "batch_size": 4}},
]
SHARED = {"data": {"name": "builtin-short", "rows": 16, "test_rows": 24}, "attack": ATTACK}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Workplace]:
    """The same victim and the same guarded one, evaluated by one worker and by two."""
    root = tmp_path_factory.mktemp("evaluated")
    one, two = Workplace(root / "one"), Workplace(root / "two")
    one.root.mkdir()
    changes = SHARED | {"sweep": {"defense": ["none", "clean_decoding"]}, "metrics": METRICS}
    grid = one.grid("evaluated", **changes)
    done = one.run(grid, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(one.root, two.root)
    shutil.rmtree(two.store / "evaluate")
    shutil.rmtree(two.results)
    done = two.run(two.grid("evaluated", **changes, resources={"workers": 2, "cpus": 1}), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return one, two


def test_two_workers_give_the_scores_of_one(evaluated: tuple[Workplace, Workplace]) -> None:
    one, two = evaluated
    folders = {folder.name: folder for folder in one.artifacts("evaluate")}
    assert {folder.name for folder in two.artifacts("evaluate")} == set(folders)
    assert len(folders) == 2 * len(METRICS)
    for folder in two.artifacts("evaluate"):
        alone, shared = (
            pq.read_table(each / "outcomes.parquet").to_pylist() for each in (folders[folder.name], folder)
        )
        assert shared == alone, manifest(folder)["measurements"]
        assert manifest(folder)["measurements"] == manifest(folders[folder.name])["measurements"]


SHARDS = {"workers": 2, "sharding": "tensor"}


@pytest.mark.parametrize("resources", [{"workers": 2}, {"evaluate": SHARDS}], ids=["whole", "shards"])
@pytest.mark.parametrize(("rank", "ending"), [(0, "raise"), (1, "raise"), (1, "kill")])
def test_an_error_of_one_worker_alone_ends_an_evaluation(
    evaluated: tuple[Workplace, Workplace], tmp_path: Path, rank: int, ending: str, resources: dict[str, Any]
) -> None:
    two = evaluated[1]
    shutil.rmtree(two.store / "evaluate", ignore_errors=True)
    (tmp_path / "sitecustomize.py").write_text(FAULTY.format(rank=rank, ending=ending))
    grid = two.grid(
        f"{ending}_{rank}_{min(resources)}", **SHARED, metrics=METRICS[:1], resources={"cpus": 1, **resources}
    )
    done = two.run(grid, timeout=300, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1, done.stdout + done.stderr
    rows = two.rows(grid)
    if ending == "raise":
        assert {row["error"] for row in rows} == {"RuntimeError: torn"}
    assert {row["failure"] for row in rows} == {"other" if ending == "raise" else "lost worker"}
    assert not two.artifacts("evaluate")


def test_two_shards_of_a_model_give_the_scores_of_one_worker(
    evaluated: tuple[Workplace, Workplace], tmp_path: Path
) -> None:
    of = SHARED | {"sweep": {"defense": ["none", "clean_decoding"]}}
    for alone, together in in_shards(evaluated[0], tmp_path / "shards", of, cpus=1):
        assert together["metric"] == alone["metric"]
        assert together["outcome"] == pytest.approx(alone["outcome"], abs=1e-5)


@pytest.mark.gpu
def test_two_gpus_with_a_shard_each_have_the_scores_of_one(tmp_path: Path) -> None:
    """Over NCCL, in bfloat16, where the order of sums may decide between two tokens of a random model."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one = Workplace(tmp_path / "one")
    one.root.mkdir()
    done = one.run(one.grid("evaluated", **SHARED, metrics=METRICS[:-1], resources={"gpus": 1}), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for alone, together in in_shards(one, tmp_path / "shards", SHARED, gpus=1):
        assert together["metric"] == alone["metric"]
        assert fmean(together["outcome"]) == pytest.approx(fmean(alone["outcome"]), abs=0.1)


def in_shards(
    one: Workplace, root: Path, of: dict[str, Any], **more: Any
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Evaluates the models of `one` in two shards; returns the outcomes of each metric from before and from now."""
    shards = Workplace(root)
    shutil.copytree(one.root, shards.root)
    shutil.rmtree(shards.store / "evaluate")
    shutil.rmtree(shards.results)
    grid = shards.grid("evaluated", **of, metrics=METRICS[:-1], resources={"evaluate": SHARDS, **more})
    done = shards.run(grid, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(row["workers"], row["sharding"], row["attack_sharding"]) for row in shards.rows(grid)}
    assert found == {(2, "tensor", None)}
    now = {folder.name: folder for folder in shards.artifacts("evaluate")}
    before = {folder.name: folder for folder in one.artifacts("evaluate") if folder.name in now}
    assert now.keys() == before.keys()
    assert len(now) >= len(METRICS[:-1])
    return [
        tuple(pq.read_table(folder / "outcomes.parquet").to_pydict() for folder in (before[name], now[name]))
        for name in now
    ]


# As sitecustomize.py: a machine of 80 kB.
SMALL_MACHINE = """
import os
whole = os.sysconf
os.sysconf = lambda name: 20 if name == "SC_PHYS_PAGES" else whole(name)
"""


def test_a_model_that_does_not_fit_stops_the_run_before_its_first_stage(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(SMALL_MACHINE)
    done = place.run(place.grid("large"), timeout=300, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "model tiny: its 0.000123 billion parameters take 0.00 GB on each worker before and" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not place.artifacts("attack")
