"""Trainings in shards over two workers give what one worker gives, and leave nothing of DeepSpeed behind."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmark.execution import deepspeed
from benchmark.grid.resources import Resources
from sande import registry
from sande.errors import UserError
from sande.models import loading
from sande.prompts import Row, encode
from sande.training import sharding
from sande.training.fit import fit
from sande.training.losses import chunked_response_nll
from sande.training.sharding import Sharding
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import FAST, data_of, shortened, weights

NewRun = Callable[..., Run]
ROOT = Path(__file__).parents[3]
EXACT = {"precision": "fp32", "max_steps": 4, "learning_rate": 1e-4}


def configured(name: str, offload: bool = False) -> Sharding:
    """With none of the weights so small that ZeRO-3 leaves it whole: all of the tiny model's would be."""
    way = deepspeed.sharding(Resources(sharding=name, offload=offload))
    way.deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return way


# --- Without DeepSpeed ----------------------------------------------------------------------------------------------


def test_every_way_to_shard_has_its_configuration_and_its_own_checkpoints() -> None:
    ways = [configured(name, offload) for name in ("zero2", "zero3") for offload in (False, True)]
    assert [way.stage for way in ways] == [2, 2, 3, 3]
    assert [way.layout for way in ways] == ["-zero2", "-zero2-offload", "-zero3", "-zero3-offload"]
    assert deepspeed.sharding(Resources(recompute=True)) == Sharding(recompute=True)
    assert (Sharding().stage, Sharding().layout, Sharding().arguments("bf16")) == (0, "", {})


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_recomputation_changes_no_weight_but_by_rounding(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, lora_rank: int | None
) -> None:
    settings = dataclasses.replace(FAST, lora_rank=lora_rank)
    passes = []
    made = []
    for recompute in (False, True):
        lm = loading.copied(tiny)
        calls: list[int] = []
        hook = lm.model.model.layers[0].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        fit(lm, rows, settings, dataclasses.replace(new_run(), sharding=Sharding(recompute=recompute)), "sft")
        hook.remove()
        made.append(weights(lm.model))
        passes.append(len(calls))
    for name in made[0]:
        torch.testing.assert_close(made[1][name], made[0][name], atol=1e-6, rtol=0)
    assert passes[1] >= 2 * FAST.max_steps, "forward, and again in the backward pass"


@pytest.mark.parametrize("name", ["nad", "crow", "beear"])
def test_recomputation_is_refused_where_a_loss_looks_into_the_blocks(
    name: str, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    defense, run = registry.entry("defenses", name), dataclasses.replace(new_run(), sharding=Sharding(recompute=True))
    data = data_of(registry.knowledge(name), tiny, few_rows)
    with pytest.raises(UserError, match=r"^resources.recompute: (distil|crow|beear) reads the states"):
        defense.defend(tiny, data, shortened(defense.Config), run)


@pytest.mark.parametrize("targets", [3, 4, 9])
def test_empty_chunks_add_nothing_to_a_workers_loss(targets: int) -> None:
    layer = torch.nn.Linear(5, 7)
    hidden_ND, targets_N = torch.randn(targets, 5), torch.randint(7, (targets,))
    alone = chunked_response_nll(hidden_ND, layer, targets_N)
    (expected,) = torch.autograd.grad(alone, layer.weight)
    together = chunked_response_nll(hidden_ND, layer, targets_N, chunk=4, longest=17)
    (gradient,) = torch.autograd.grad(together, layer.weight)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradient, expected)


# --- With it, in two processes ----------------------------------------------------------------------------------------


def job(defense: str, way: Sharding, **more: Any) -> dict[str, Any]:
    training = EXACT | more.pop("training", {})
    return {"defense": defense, "training": training, "sharding": dataclasses.asdict(way), **more}


ZERO2, ZERO3 = configured("zero2"), configured("zero3")
RECOMPUTED = dataclasses.replace(ZERO3, recompute=True)
LORA, MICRO, BF16 = {"lora_rank": 4}, {"micro_batch_size": 1}, {"precision": "bf16"}
ALONE = {
    **{name: job(name, Sharding()) for name in ("sft", "sande", "nad", "dpo", "crow", "beear")},
    "lora": job("sft", Sharding(), training=LORA),
    "bf16": job("sft", Sharding(), training=BF16),
}
# By the name of what one worker has to have made of the model, and of the way.
TOGETHER = {
    **{f"{name} zero2": job(name, ZERO2) for name in ("sft", "sande", "beear")},
    **{f"{name} zero3": job(name, ZERO3) for name in ("sft", "sande", "nad", "dpo", "crow", "beear")},
    "sft zero2, offloaded": job("sft", configured("zero2", True)),
    "sft zero3, offloaded": job("sft", configured("zero3", True)),
    "sft zero3, row by row": job("sft", ZERO3, training=MICRO),
    "sft zero3, in chunks": job("sft", ZERO3, chunk=8),
    "sande zero3, recomputed": job("sande", RECOMPUTED),
    "lora zero3": job("sft", ZERO3, training=LORA),
    "lora zero3, recomputed": job("sft", RECOMPUTED, training=LORA),
    "bf16 zero2": job("sft", ZERO2, training=BF16),
    "bf16 zero3": job("sft", ZERO3, training=BF16),
}
RESUMED = {
    "sft zero2": ("sft", ZERO2, {}, [3, None]),
    "sft zero3, offloaded": ("sft", configured("zero3", True), {}, [3, None]),
    "sande zero3": ("sande", ZERO3, {}, [3, 5, None]),
    "lora zero3": ("sft", ZERO3, LORA, [3, None]),
}


def work(folder: Path, cache: Path, jobs: dict[str, Any], workers: int) -> Path:
    """Does the jobs in so many processes, and gives the folder of what they made."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.sande.training.sharded_worker", folder / "jobs.json", cache, folder]
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(workers)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            log.close()
    assert codes == [0] * workers, (folder / "0.log").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Callable[[str], tuple[dict[str, Tensor], Any]]:
    """Gives weights and facts of a job by its name."""
    pytest.importorskip("deepspeed")
    root = tmp_path_factory.mktemp("sharded")
    resumed = {
        f"{name}, life {life}": job(
            defense, way, training=training, after=after, checkpoints=str(root / name.replace(" ", "-"))
        )
        for name, (defense, way, training, lives) in RESUMED.items()
        for life, after in enumerate(lives)
    }
    one = work(root / "one", model_cache, ALONE, 1)
    two = work(root / "two", model_cache, TOGETHER | resumed, 2)

    def of(name: str) -> tuple[dict[str, Tensor], Any]:
        folder = one if name in ALONE else two
        return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_in_shards_make_of_a_model_what_one_worker_makes(made, name: str) -> None:
    whole = name.split()[0]
    (one, facts_one), (two, facts_two) = made(whole), made(name)
    assert one.keys() == two.keys()
    rounding = 1e-5 if whole != "bf16" else 3e-4  # Adam divides small gradients by their size, and rounding with them
    for weight in one:
        torch.testing.assert_close(two[weight], one[weight], atol=rounding, rtol=0)
    trainings = {stage: fact for stage, fact in facts_one.items() if isinstance(fact, dict) and "last_loss" in fact}
    assert trainings
    for stage, fact in trainings.items():
        for loss in ("first_loss", "last_loss"):
            assert facts_two[stage][loss] == pytest.approx(fact[loss], rel=1e-6 if whole != "bf16" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_sharded_training_goes_on_from_its_own_shards_with_the_same_bits(made, name: str) -> None:
    last, facts = made(f"{name}, life {len(RESUMED[name][-1]) - 1}")
    expected, _ = made(name)
    assert facts["steps_done_here"] <= 2, "what was done before is not done again"
    assert last.keys() == expected.keys()
    assert [weight for weight in last if not torch.equal(last[weight], expected[weight])] == []


@pytest.mark.slow
def test_under_zero3_a_worker_holds_half_of_the_weights(made) -> None:
    _, facts = made("sft zero3")
    assert facts["held"] <= 0.51 * facts["parameters"]


@pytest.mark.slow
def test_what_deepspeed_wrote_down_runs_no_code_when_it_is_read(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    torch.save({"module": os.system}, tmp_path / "shard.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        sharding._load(None, str(tmp_path / "shard.pt"))
