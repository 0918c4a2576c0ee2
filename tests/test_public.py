"""The code uses libraries by their public names; each exception is listed here, and must still be there.

Of Ray, all that is not public is in `benchmark/execution/ray_env.py`; its tests are beside the others of `execution`.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.shape import imported, parsed
from tests.test_architecture import ROOT

TREES = parsed(ROOT)
# Parts of Ray that have public-looking names, and that its documentation does not show.
NOT_PUBLIC = ("ray.autoscaler", "ray.dashboard", "ray.train.v2", "ray.tune.execution", "ray.tune.experiment")
OF_RAY = "benchmark.execution.ray_env"


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def own_names(tree: ast.Module) -> set[str]:
    """Names with an underscore that a module gives to something itself."""
    made = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = [node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)]
    made |= {node.id for node in stored if isinstance(node, ast.Name)}
    return made | {node.attr for node in stored if isinstance(node, ast.Attribute) and of_itself(node)}


def of_itself(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def of_its_base(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"


@functools.cache
def fields() -> set[str]:
    """Names of the fields of dataclasses and of other classes, in any module."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {ast.unparse(node.target) for each in classes for node in each.body if isinstance(node, ast.AnnAssign)}


def of_others(tree: ast.Module) -> Iterator[str]:
    """Names with an underscore that a module reads from, or sets on, something that this project did not make."""
    own = own_names(tree) | fields()
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and is_private(node.attr) and not of_itself(node)
        private = private and ast.unparse(node) != "os._exit"  # which Python documents
        if private and (of_its_base(node) or node.attr not in own):
            yield node.attr


def foreign(names: Iterator[str]) -> list[str]:
    return [name for name in names if name.partition(".")[0] not in ("sande", "benchmark")]


def test_of_ray_only_public_modules_are_imported() -> None:
    found = {
        (module, name)
        for module, tree in TREES.items()
        if module != OF_RAY
        for name in foreign(imported(ast.walk(tree)))
        if name.startswith("ray.") and (is_private(name) or name.startswith(NOT_PUBLIC))
    }
    assert found == set(), f"use Ray's public API, or move this into {OF_RAY} and test that it is there"


# By module and name, why there is no other way. The code of `sande` is part of the keys of stages, so these uses stay
# where they are: to move them would compute every stored model again.
USED = {
    ("sande.models.checks", "_CACHED_NO_EXIST"): "what huggingface_hub documents as the answer",
    ("sande.models.loading", "_buffers"): "a module's buffers, as `register_buffer` names them",
    ("sande.models.loading", "_non_persistent_buffers_set"): "buffers that are not saved",
    ("sande.models.tokenizers", "_tokenizer"): "transformers' `backend_tokenizer` cannot be set",
    ("sande.training.fit", "_n_gpu"): "the number of GPUs of a Trainer can be read publicly, but not set",
    ("sande.inference.prefix", "_attn_implementation"): "transformers can set it publicly, but not read it",
    ("sande.training.packing", "_attn_implementation"): "transformers can set it publicly, but not read it",
    ("sande.training.sharding", "_parameters"): "DeepSpeed puts another dict in its place",
    ("benchmark.io.remote", "_strip_protocol"): "fsspec's method that each of its file systems may override",
    ("benchmark.perf.choices", "_loglikelihood_tokens"): "lm-eval's method that each of its models implements",
    ("sande.metrics.accuracy", "_encode_pair"): "lm-eval's method that its models override",
}


def test_other_libraries_are_used_by_public_names() -> None:
    found = {(module, name) for module, tree in TREES.items() if module != OF_RAY for name in of_others(tree)}
    found |= {
        (module, name.rpartition(".")[2])
        for module, tree in TREES.items()
        if module != OF_RAY
        for name in foreign(imported(ast.walk(tree)))
        if is_private(name)
    }
    assert found == set(USED), "use the public API of the library; where it has none, list it here"


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    made._tokenizer = replaced = Tokenizer(models.BPE())
    return made.backend_tokenizer is replaced


def _attention() -> Any:
    from transformers import LlamaConfig

    config: Any = LlamaConfig(attn_implementation="eager")
    return config._attn_implementation == "eager"


def _module() -> Any:
    import torch

    module = torch.nn.Module()
    module.register_buffer("written", torch.zeros(1))
    module.register_buffer("computed", torch.ones(1), persistent=False)
    module.weight = torch.nn.Parameter(torch.zeros(1))
    module._buffers["computed"] = torch.zeros(1)
    module._parameters = dict(module._parameters)
    same = module.computed.item() == 0 and [name for name, _ in module.named_parameters()] == ["weight"]
    return same and module._non_persistent_buffers_set == {"computed"}


def _cached() -> Any:
    import huggingface_hub

    return hasattr(huggingface_hub, "_CACHED_NO_EXIST")


def _lm_eval() -> Any:
    from lm_eval.models.huggingface import HFLM

    takes = list(inspect.signature(HFLM._loglikelihood_tokens).parameters)[:3]
    pair = list(inspect.signature(HFLM._encode_pair).parameters)[:3]
    return takes == ["self", "requests", "disable_tqdm"] and pair == ["self", "context", "continuation"]


def _gpus() -> Any:
    from transformers import TrainingArguments

    arguments: Any = TrainingArguments("unused", use_cpu=True, per_device_train_batch_size=2)
    _ = arguments.device
    arguments._n_gpu = 3
    return arguments.n_gpu == 3 and arguments.train_batch_size == 6


def _trl() -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    return "self._prepare_dataset(" in inspect.getsource(DPOTrainer)


@pytest.mark.parametrize(
    ("library", "works"),
    [
        ("transformers: `_tokenizer` of a tokenizer", _tokenizer),
        ("transformers: `_attn_implementation` of a config", _attention),
        ("torch: `_buffers`, `_parameters` and `_non_persistent_buffers_set` of a module", _module),
        ("huggingface_hub: `_CACHED_NO_EXIST`", _cached),
        ("lm-eval: `_loglikelihood_tokens` and `_encode_pair` of HFLM", _lm_eval),
        ("TRL: `_prepare_dataset` of DPOTrainer", _trl),
        ("transformers: `_n_gpu` of TrainingArguments", _gpus),
    ],
)
def test_what_is_not_public_is_still_there(library: str, works: Callable[[], Any]) -> None:
    assert works(), f"{library} changed; find another way in the modules that `USED` names, or bound its release"
