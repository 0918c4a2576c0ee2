"""Checks of a model's folder before anything of it is loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sande.errors import UserError
from sande.types import LanguageModel

WEIGHTS = "*.safetensors"
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_ADAPTER, _INDEX = "adapter_config.json", "model.safetensors.index.json"
_READ_FIRST = ("config.json", "tokenizer_config.json", _ADAPTER, _INDEX)  # they may ask for code or other files
GUARD = "guard"  # folder of the reference model; its guard.json names the defense and its settings


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


def reason(error: Exception) -> str:
    """Return the first line of an error, or its type where it has no text."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def checked_folder(name: str) -> Path:
    """Return the folder of a model; raise UserError where a file is missing, is a pickle or asks for code."""
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; use a folder written by save_pretrained")
    weights = sorted(folder.glob(WEIGHTS))
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
            f"{path} is not a complete safetensors file ({reason(error)}); fetch or write it again"
        ) from None


@functools.cache
def check_hub(source: str, revision: str | None) -> None:
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
            f"model '{source}' cannot be checked, its {file} cannot be fetched ({reason(error)}); check id, access "
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
