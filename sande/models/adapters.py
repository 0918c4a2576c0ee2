"""LoRA adapters (PEFT's folders): what their files may ask for, and how they are merged into their base model.

PEFT gets a configuration of a few numbers and names, and weights that were read from safetensors; it opens no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.errors import UserError
from sande.models import sizes
from sande.models.checks import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    WHOLE,
    check_no_code,
    check_requests,
    files,
    read_object,
    reason,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_NAME = re.compile(r"[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# base_model.model.MODULE.lora_A.weight, and the like
_LORA = re.compile(r"base_model\.model\.(?P<module>.+?)\.lora_(?P<what>\w+?)(\.weight|\.bias)?")
_TWICE = re.compile(r"\.(modules_to_save|original_module)\.")  # PEFT saves some embeddings under their own name, too
_RANKED = re.compile(r"\.lora_(embedding_)?A")  # its rows are the rank
_PREFIX = "base_model.model."
_USED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "modules_to_save")
_SWITCHES = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
# Settings of the training, and places that the weights' names give better.
_IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core"),
    *("peft_type", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type"),
)
# Of the first values of an adapter, those that leave the base model as it is.
_INITIAL = (True, False, None, "gaussian", "orthogonal")
_MERGE = "merge it with PEFT's merge_and_unload, and use the merged model"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with a LoRA adapter.

    Attributes:
        folder: with its configuration and weights, and perhaps a tokenizer.
        base: name, pinned Hub id, folder or file of the model that it changes.
        settings: checked values of the configuration.
    """

    folder: Path
    base: str
    settings: Mapping[str, Any]


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole model."""
    # Of a name too long for a path, `Path.is_file` raises an error.
    return os.path.isfile(folder / ADAPTER) and not any((folder / name).is_file() for name in WHOLE)


def split(name: str) -> tuple[Path, str] | None:
    """Return the folder of an adapter and the name of its base ("" for its own), if a model's name means these.

    The name is that of the folder, or FOLDER+BASE.
    """
    if is_adapter(Path(name)):
        return Path(name), ""
    places = [place for place, letter in enumerate(name) if letter == "+"]
    return next(((Path(name[:at]), name[at + 1 :]) for at in places if is_adapter(Path(name[:at]))), None)


def with_base(model: str, base: str | None) -> str:
    """Return the name of an adapter on a base, for everything that takes the name of a model.

    Args:
        model: folder of the adapter; any model where there is no base.
        base: name, pinned Hub id, folder or file; None: the adapter's own.

    Raises:
        UserError: a base is given for a model that is not an adapter.
    """
    if base is None:
        return model
    if not is_adapter(Path(model)):
        raise UserError(f"--base: {model} holds no {ADAPTER}; remove --base, or choose the folder of an adapter")
    return f"{model}+{base}"


def checked_adapter(folder: Path, base: str, known: Mapping[str, str]) -> Adapter:
    """Return the adapter of a folder.

    Args:
        folder: of the adapter.
        base: model that it changes; "": the one that its configuration names.
        known: names of models by their Hub id.

    Raises:
        UserError: it is no LoRA adapter, asks for something that is not supported, has no safetensors, or its base is
            not known.
    """
    files(folder)
    check_no_code(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {ADAPTER_WEIGHTS}; convert its weights, pickles are not loaded")
    sizes.tensor_count(folder / ADAPTER_WEIGHTS)
    values = read_object(str(folder), folder / ADAPTER)
    tokenizer = folder / "tokenizer_config.json"
    check_requests(str(folder), {tokenizer.name: tokenizer} if tokenizer.is_file() else {})
    base = base or _own_base(folder, values, known)
    if is_adapter(Path(base)):
        raise UserError(f"{folder}: its base {base} is an adapter, too; merge that one first")
    return Adapter(folder, base, _settings(f"{folder / ADAPTER}", values))


def _own_base(folder: Path, values: Mapping[str, Any], known: Mapping[str, str]) -> str:
    own, revision = values.get("base_model_name_or_path"), values.get("revision")
    if isinstance(own, str):
        if os.path.exists(own):  # unlike `Path.exists`, False for a name too long for a path
            return own
        pinned = isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None
        if pinned and _HUB.fullmatch(own):
            return f"{own}@{revision}"
        if not pinned and own in known:
            return known[own]
    raise UserError(
        f"{folder} is an adapter of {f'{own!r:.100}' if own else 'an unnamed model'}, which is neither a folder here "
        "nor a pinned model; use --base with a folder, a name or org/name@COMMIT"
    )


def _settings(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide what an adapter computes; refuse those that would need more than its weights."""
    if str(values.get("peft_type")).upper() != "LORA":
        raise UserError(f"{place}: peft_type {values.get('peft_type')!r} is not supported, but LORA is; {_MERGE}")
    if values.get("bias", "none") != "none":
        raise UserError(f"{place}: 'bias' is {values['bias']!r}, not 'none'; {_MERGE}")
    if values.get("init_lora_weights") not in _INITIAL:
        raise UserError(f"{place}: 'init_lora_weights' {values['init_lora_weights']!r} changes the base; {_MERGE}")
    for name, value in values.items():
        if name not in (*_USED, *_SWITCHES, *_IGNORED) and value:
            raise UserError(f"{place}: '{name}' is not supported; {_MERGE}")
    found: dict[str, Any] = {name: bool(values.get(name)) for name in _SWITCHES}
    found |= {"r": values.get("r"), "lora_alpha": values.get("lora_alpha")}
    patterns = {name: values.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    saved = values.get("modules_to_save") or []
    if not all(isinstance(each, dict) for each in patterns.values()) or not isinstance(saved, list):
        raise UserError(f"{place}: a pattern is no object, or modules_to_save is no list; {_MERGE}")
    numbers = [found["r"], found["lora_alpha"], *(n for each in patterns.values() for n in each.values())]
    # PEFT reads these names as regular expressions, which may take for ever.
    names = [*saved, *(name for each in patterns.values() for name in each)]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 2**16 for n in numbers):
        raise UserError(f"{place}: a rank or lora_alpha is not a number above 0 and below 65536; {_MERGE}")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise UserError(f"{place}: a name of a module is a pattern, or not a text; {_MERGE}")
    return found | patterns | {"modules_to_save": list(saved) or None}


def merge_(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Merge the adapter into the weights of its base, W + s B A with the scale s of its configuration; return it.

    Source: Hu et al. 2022, section 4.1, as PEFT computes it. The weights are changed in place.

    Args:
        model: the base, in float32.
        adapter: of this model.

    Raises:
        UserError: the adapter was made for another model, or its weights are not finite.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(adapter.folder / ADAPTER_WEIGHTS)
    weights = {name: weight for name, weight in saved.items() if not _TWICE.search(name)}
    targets = sorted({found["module"] for name in weights if (found := _LORA.fullmatch(name))})
    if not targets:
        raise UserError(f"{adapter.folder / ADAPTER_WEIGHTS} holds no weights of LoRA; write the adapter again")
    _check_targets(model, adapter, targets)
    ranked = [weight for name, weight in weights.items() if _RANKED.search(name)]
    if not ranked or any(weight.dim() < 2 for weight in ranked):
        raise UserError(
            f"{adapter.folder / ADAPTER_WEIGHTS} has no lora_A, or one that is not a matrix; write the adapter again"
        )
    _check_ranks(adapter, max(map(len, ranked)))
    touched = {name.removeprefix(_PREFIX).rpartition(".")[0] for name in weights} | set(targets)
    _resize(model, weights)
    _untie(model, touched)
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=targets,
            init_lora_weights=False,
            inference_mode=True,
            **adapter.settings,
        )
        adapted: Any = get_peft_model(model, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
        unknown = list(result.unexpected_keys)
        lacking = [name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name]
        if unknown or lacking:
            raise ValueError(f"{len(unknown)} weights too many and {len(lacking)} too few: {[*unknown, *lacking][0]}")
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except MemoryError:
        raise
    except Exception as error:  # the files are untrusted
        raise UserError(
            f"{adapter.folder} cannot be merged into {adapter.base} ({reason(error)}); use the base that it was "
            "trained on"
        ) from None
    return merged


def _check_targets(model: PreTrainedModel, adapter: Adapter, targets: list[str]) -> None:
    modules = {name for name, _ in model.named_modules()}
    for target in targets:
        if target not in modules:
            raise UserError(
                f"{adapter.folder} changes {target}, which {adapter.base} does not have; use the base that it was "
                "trained on"
            )


def _check_ranks(adapter: Adapter, largest: int) -> None:
    rank = max(adapter.settings["r"], *adapter.settings["rank_pattern"].values(), 0)
    if rank > largest:  # PEFT would reserve the memory before it compares
        raise UserError(f"{adapter.folder}: {ADAPTER} has rank {rank}, the weights {largest}; write the adapter again")


def _ends(model: PreTrainedModel) -> dict[str, Any]:
    """Return input embedding and output layer by name."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {name: module for name, module in model.named_modules() if any(module is end for end in ends)}


def _resize(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Give the base as many token embeddings as the adapter was saved with, where it was trained with added tokens."""
    for name, module in _ends(model).items():
        for saved in (weights.get(f"{_PREFIX}{name}.{rest}") for rest in ("weight", "base_layer.weight")):
            if saved is not None and saved.dim() == 2 and len(saved) != len(module.weight):
                model.resize_token_embeddings(len(saved), mean_resizing=False)


def _untie(model: PreTrainedModel, touched: set[str]) -> None:
    """Give the output layer weights of its own where an adapter changes it, or the embeddings, alone."""
    import torch

    ends = _ends(model)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not touched & set(ends) or output is None or output.weight is not embedding.weight:
        return
    output.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
