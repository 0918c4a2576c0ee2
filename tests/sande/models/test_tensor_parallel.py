"""A model of which two processes hold a shard each measures what it measures whole."""

import copy
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import GPT2Config, LlamaConfig

from sande import registry
from sande.errors import UserError
from sande.models import loading, tensor_parallel
from sande.models.layers import LOGITS, logits_at_once, output_in_float32
from sande.types import Guard, LanguageModel
from tests.sande.helpers import noisy
from tests.sande.models import shard_worker

ROOT = Path(__file__).parents[3]
Found = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What a single process measures, and what each of two measures with a shard of the model and of its guard's."""
    folder = tmp_path_factory.mktemp("shards")
    lm, guarding = loading.load("tiny", model_cache), registry.entry("defenses", "clean_decoding")
    config = guarding.Config()
    reference = copy.deepcopy(lm.model)
    noisy(lm.model, 1)
    noisy(reference, 2)
    guard = Guard("clean_decoding", {}, reference, guarding.rule(config, ()), guarding.distribution(config, ()))
    models = {"plain": lm, "guarded": LanguageModel(lm.model, lm.tokenizer, guard)}
    alone = {}
    for name, each in models.items():
        loading.save(each, folder / name)
        alone[name] = shard_worker.measured(loading.load_folder(folder / name, torch.float32))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.sande.models.shard_worker", str(folder), port]
    started = [subprocess.Popen([*command, str(rank), "2"], cwd=ROOT, stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=300)[1].decode()[-2000:] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return alone, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def texts_and_numbers(value: Any) -> tuple[list[str], list[float]]:
    """All texts of a JSON value, and all numbers, in order."""
    if isinstance(value, dict | list):
        inner = [texts_and_numbers(part) for part in (value.values() if isinstance(value, dict) else value)]
        return [text for texts, _ in inner for text in texts], [number for _, each in inner for number in each]
    return ([value], []) if isinstance(value, str) else ([], [float(value)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "guarded"])
def test_two_shards_measure_what_the_whole_model_does(found: Found, name: str) -> None:
    alone, workers = found
    expected, measured = alone[name], workers[0][name]["measured"]
    assert measured.keys() == expected.keys()
    assert {"asr", "builtin-choice", "exact_match", "answer_probability", "phrase_probability"} <= set(expected)
    for metric in expected:
        (texts, numbers), (said, known) = texts_and_numbers(measured[metric]), texts_and_numbers(expected[metric])
        assert texts == said
        assert numbers == pytest.approx(known, rel=2e-5, abs=1e-6), metric


@pytest.mark.slow
def test_both_have_the_same_bits_and_half_of_the_weights(found: Found) -> None:
    workers = found[1]
    for name in ("plain", "guarded"):
        assert workers[0][name]["measured"] == workers[1][name]["measured"]
        for each in workers:
            local, whole = each[name]["held"]
            assert whole / 2 <= local < 0.51 * whole


@pytest.mark.slow
def test_a_model_in_shards_is_not_copied(found: Found) -> None:
    assert found[1][0]["copied"].startswith("a model in shards cannot be copied, which this metric needs; set ")


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("biased", [True, False])
def test_an_output_layer_in_shards_is_used_like_a_whole_one(group: None, biased: bool) -> None:
    layer, hidden_MD = nn.Linear(5, 7, bias=biased).bfloat16(), torch.randn(3, 2, 5)
    config = LlamaConfig()
    whole = SimpleNamespace(get_output_embeddings=lambda: layer, config=config)
    mesh = distributed.init_device_mesh("cpu", (1,))
    parts = {name: distribute_tensor(each.detach(), mesh, [Shard(0)]) for name, each in layer.named_parameters()}
    output = tensor_parallel._Output(SimpleNamespace(**{"bias": None} | parts))
    sharded = SimpleNamespace(get_output_embeddings=lambda: output, config=config)
    torch.testing.assert_close(output_in_float32(sharded)(hidden_MD), output_in_float32(whole)(hidden_MD))
    assert logits_at_once(sharded, 2**30) == logits_at_once(whole, 2**30) == LOGITS // 7
    with pytest.raises(TypeError):
        torch.mm(hidden_MD[0], output.weight)


@pytest.mark.parametrize(
    ("config", "workers", "problem"),
    [
        (LlamaConfig(num_attention_heads=4, num_key_value_heads=2), 3, "3 workers cannot split its 4 attention heads"),
        (LlamaConfig(num_attention_heads=4, num_key_value_heads=2), 4, "split its 2 heads of keys and values; set "),
        (LlamaConfig(num_attention_heads=4, num_key_value_heads=1), 2, "values; set resources.evaluate.sharding to no"),
        (GPT2Config(), 2, "has no plan to split the architecture 'gpt2' over workers; set resources.evaluate.sharding"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(config: Any, workers: int, problem: str) -> None:
    with pytest.raises(UserError, match=r"^model x: ") as refused:
        tensor_parallel.check_splits(config, "x", workers)
    assert problem in str(refused.value)


def test_workers_that_divide_the_heads_are_taken() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=12, num_key_value_heads=6)
    for workers in (2, 3, 6):
        tensor_parallel.check_splits(config, "x", workers)
    with pytest.raises(UserError, match=r"set resources.evaluate.workers to one of 2, 3, 6$"):
        tensor_parallel.check_splits(config, "x", 4)
