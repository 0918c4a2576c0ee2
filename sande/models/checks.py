"""Checks of a model's folder before anything of it is loaded, and the list of its files that loading may read."""

from __future__ import annotations

import functools
import json
import math
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.errors import UserError
from sande.models import sizes
from sande.types import LanguageModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS = "*.safetensors"
# All that libraries read of a model or a tokenizer. A folder's identity is these files, and nothing else is opened.
READ = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "merges.txt", "vocab.txt", WEIGHTS)
TOKENIZER = tuple(pattern for pattern in READ if pattern != WEIGHTS)
_NOT_READ = ("trainer_state.json",)
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
# The Trainer's own files in its folders and checkpoints.
_TRAINER = (
    *("training_args.bin", "optimizer.bin", "optimizer.pt", "rng_state*.pth", "scaler.pt", "scheduler.bin"),
    *("scheduler.pt", "trainer_state.json", "random_states_*.pkl"),
)
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHTS, _INDEX = WHOLE = ("model.safetensors", "model.safetensors.index.json")
_READ_FIRST = ("config.json", "tokenizer_config.json", ADAPTER, _INDEX)  # they may ask for code or other files
_PATHS = ("vocab_file", "merges_file", "tokenizer_file", "spm_file")  # in tokenizer_config.json
_SHOWN, _NAME = 3, 100  # tensors that a note names, and characters of a name
_SHORT_TEXT = "Say hello."  # which a model reads to show that it computes numbers
_ROUNDING, _ROUNDING_OF_HALF = 1e-3, 0.03  # in float32, in half precision; relative to the largest logit
# Most MiB of a file of settings, and of one that lists a vocabulary or weights: three times the largest that are known.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", ADAPTER)
_LISTS = ("tokenizer.json", "tokenizer.model", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", _INDEX)
_MOST = {**dict.fromkeys(_SETTINGS, 16), **dict.fromkeys(_LISTS, 128)}
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
GUARD = "guard"  # folder of the reference model; its guard.json names the defense and its settings


def check_vocabularies(
    suspect: LanguageModel,
    clean: LanguageModel,
    names: Sequence[str],
    fix: str = "give the model it was trained from as reference, or none",
) -> None:
    """Check that a model and another one, such as the clean model that it is compared with, share their tokens.

    Raises:
        UserError: they do not; the message calls them by `names`, and ends with `fix`.
    """
    if suspect.tokenizer.get_vocab() != clean.tokenizer.get_vocab():
        raise UserError(f"the vocabularies of {names[0]} and {names[1]} differ; {fix}")


def reason(error: BaseException) -> str:
    """Return the first line of an error, or its type where it has no text."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def check_finite(lm: LanguageModel, name: str) -> None:
    """Check that no weight of a model is infinite or NaN, and that its logits are numbers which scores here reproduce.

    Raises:
        UserError: one is, or they are not; the message calls the model by `name`.
    """
    import torch

    for of, weight in lm.model.named_parameters():
        # A sum is read from memory once, and is not finite where a weight is not; where it overflows, each one counts.
        if not weight.detach().sum(dtype=torch.float32).isfinite() and not weight.detach().isfinite().all():
            raise UserError(f"model '{name}' has weights that are infinite or NaN ({of}); use a model without them")
    ids = lm.tokenizer.encode(_SHORT_TEXT, add_special_tokens=False) or [lm.tokenizer.eos_token_id]
    ids_1T = torch.tensor([ids], device=lm.model.device)
    with torch.no_grad():  # in inference mode, what a model keeps could not be used in training
        logits_1TV = lm.model(input_ids=ids_1T, use_cache=False).logits.float()
        if logits_1TV.log_softmax(-1).isnan().any():
            raise UserError(
                f"model '{name}' computes NaN from finite weights, so no scan can judge it; repair it, or use another "
                "model"
            )
        if not _reproduced(lm.model, ids_1T, logits_1TV):
            raise UserError(
                f"model '{name}' ({type(lm.model).__name__}) does not get its logits from its decoder and output layer "
                "alone, so scores and losses here would not be its own; use a model of another architecture"
            )


def _reproduced(model: PreTrainedModel, ids_1T: Tensor, logits_1TV: Tensor) -> bool:
    """Return whether the output layer in float32 gives a model's own logits, except for its rounding.

    A model may mask tokens, whose logits are then infinite.
    """
    import torch

    from sande.models.layers import output_in_float32

    hidden_1TD = getattr(model.get_decoder()(input_ids=ids_1T, use_cache=False), "last_hidden_state", None)
    if hidden_1TD is None or model.get_output_embeddings() is None:
        return False
    found_1TV, finite_1TV = output_in_float32(model)(hidden_1TD), logits_1TV.isfinite()
    if found_1TV.shape != logits_1TV.shape:
        return False
    apart, largest = (each_1TV[finite_1TV].abs().max() for each_1TV in (found_1TV - logits_1TV, logits_1TV))
    return bool(apart <= largest * (_ROUNDING if model.dtype == torch.float32 else _ROUNDING_OF_HALF))


def checked_folder(name: str) -> Path:
    """Return the folder of a model, which may be loaded.

    Pickles beside safetensors are accepted, since `only_checked` keeps them from everything that loads the model.

    Raises:
        UserError: a file is missing, is a pickle, asks for code, or is something else than a file; or `config.json`
            describes more layers than the files can hold.
    """
    folder = Path(name)
    files(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; use a folder written by save_pretrained")
    check_no_code(folder)
    if (folder / ADAPTER).is_file():
        raise UserError(f"{folder} holds both an adapter and a whole model; move one of them to another folder")
    check_requests(name, {file: folder / file for file in _READ_FIRST if (folder / file).is_file()})
    if not any(folder.glob(WEIGHTS)):
        raise UserError(f"{folder} holds no safetensors; convert its weights, pickles are not loaded")
    if not any((folder / name).is_file() for name in WHOLE):
        raise UserError(f"{folder} holds neither {' nor '.join(WHOLE)}; use a folder written by save_pretrained")
    tensors = {path: sizes.tensor_count(path) for path in sorted(folder.glob(WEIGHTS))}
    config = read_object(name, folder / "config.json")
    sizes.check_counts(name, config, sum(tensors[path] for path in weight_files(folder)))
    return folder


def check_no_code(folder: Path) -> None:
    """Raise UserError where a folder holds Python code."""
    for path in sorted(folder.glob("*.py")):
        raise UserError(f"{path} is code, and a model's code is never run; remove it from the folder")


def unread(folder: Path) -> list[str]:
    """Return a sentence for each kind of files in a model's folder that are never read.

    They are the Trainer's, pickles, and weights besides those of the model.
    """
    trainer = sorted({path.name for pattern in _TRAINER for path in folder.glob(pattern)})
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES and path.name not in trainer)
    is_whole = (folder / "config.json").is_file() and any((folder / name).is_file() for name in WHOLE)
    used = weight_files(folder) if is_whole else []
    spare = sorted(path.name for path in folder.glob(WEIGHTS) if path not in used) if used else []
    return [
        *([f"{folder}: not read, since they are not part of the model: {', '.join(spare)}"] if spare else []),
        *([f"{folder}: not read, since only the Trainer needs them: {', '.join(trainer)}"] if trainer else []),
        *([f"{folder}: not read, and not checked, since they are pickles: {', '.join(pickles)}"] if pickles else []),
    ]


def check_complete(source: str, info: Mapping[str, Any]) -> None:
    """Raise UserError where transformers would draw weights at random: the files lack them, or have other shapes.

    Args:
        source: names the model.
        info: what `from_pretrained` reports of the load.
    """
    if lacking := sorted(info["missing_keys"]):
        raise UserError(
            f"model '{source}' lacks {len(lacking)} of its weights ({lacking[0]}, …); add the missing file, or use the "
            "config.json of this model"
        )
    for name, held, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"model '{source}' has {name} with the shape {list(held)}, and its config.json asks for {list(wanted)}; "
            "use the config.json of this model"
        )


def not_loaded(source: str, names: Sequence[str]) -> str:
    """Return a sentence on the weights in a model's files that are not part of the model, by their names."""
    shown = ", ".join(repr(name[:_NAME]) for name in names[:_SHOWN])
    return (
        f"{source}: not loaded, since the model that its config.json describes has no such weights: {len(names)} "
        f"tensor{'s' * (len(names) > 1)} of its files ({shown}{', …' if len(names) > _SHOWN else ''})"
    )


def files(folder: Path, patterns: Sequence[str] = READ) -> list[Path]:
    """Return the files of a model's folder that loading may read, sorted; raise UserError as `check_file`."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.name not in _NOT_READ})
    for path in found:
        check_file(path)
    return found


def check_file(path: Path) -> None:
    """Raise UserError where a path of a model is not a file or a link to one, or is too large for what it holds.

    To open a named pipe waits for ever, and a device may have no end.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); replace it with the file, or remove it") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UserError(f"{path} is {kind}, not a file; replace it with the file, or remove it")
    if found.st_size > 2**20 * (most := _MOST.get(path.name, math.inf)):
        raise UserError(f"{path} has more than {most} MiB, which no model needs; fetch or write it again")


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checked folder that hold its weights: one, or the shards that its index names."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    return [folder / shard for shard in _shards(read_object(str(folder), folder / _INDEX))]


@contextmanager
def only_checked(folder: Path, patterns: Sequence[str] = READ, more: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder with links to the files of a model's folder that loading may read, and to no others.

    So a library opens none but these, whatever it looks for.

    Args:
        folder: of the model.
        patterns: of the files.
        more: contents of further files, by name.
    """
    with tempfile.TemporaryDirectory(prefix="sande-model-") as made:
        for path in files(folder, patterns):
            link = Path(made) / path.relative_to(folder)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
        for name, text in (more or {}).items():
            (Path(made) / name).unlink(missing_ok=True)
            (Path(made) / name).write_text(text, encoding="utf-8")
        yield Path(made)


@functools.cache
def check_hub(source: str, revision: str | None) -> None:
    """Check a model of the Hub as `check_requests` does; a commit never changes, so one passed check is enough.

    Raises:
        UserError: as `check_requests`, or a file that the check reads cannot be fetched. Then the model is refused,
            since the load that follows might reach the Hub and meet a file that no check has seen.
    """
    if revision is None:
        return
    fetched = {file: fetch(source, revision, file) for file in _READ_FIRST}
    check_requests(source, {file: path for file, path in fetched.items() if path})


def fetch(source: str, revision: str, file: str) -> Path | None:
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


def check_requests(source: str, files: dict[str, Path]) -> None:
    """Refuse a model that asks for code, for another model, or for weights other than its own safetensors.

    Args:
        source: names the model in messages.
        files: those of `_READ_FIRST` that it has.

    Raises:
        UserError: it does, or one of the files is not a JSON object.
    """
    for name, path in files.items():
        values = read_object(source, path)
        if name == ADAPTER:
            raise UserError(
                f"{source} is an adapter of another model; download both, and use the adapter's folder with --base"
            )
        if asked := _code(values):
            raise UserError(
                f"{source} asks for code of its own ({asked} in {name}), which is never run; remove it from a copy"
            )
        if name == "tokenizer_config.json":
            _check_paths(source, name, values)
        if name == "config.json" and _holds(values, "transformers_weights"):
            # transformers would load the file of this name in place of the weights that were checked.
            raise UserError(f"{source}/{name} names a file of weights ('transformers_weights'); remove it from a copy")
        if name == _INDEX:
            _check_shards(source, name, values, path.parent)


def read_object(source: str, path: Path) -> dict[str, Any]:
    """Return the JSON object of a model's file.

    Args:
        source: names the model in messages.
        path: of the file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    check_file(path)
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{source}/{path.name} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{source}/{path.name} is damaged, it is not a JSON object; fetch or write the model again")
    return values


def _check_paths(source: str, name: str, values: dict[str, Any]) -> None:
    for key in _PATHS:
        path = values.get(key)
        if isinstance(path, str) and Path(path).name != path:
            raise UserError(f"{source}/{name} names a file elsewhere ('{key}'); remove the key from a copy")


def _check_shards(source: str, name: str, values: dict[str, Any], folder: Path) -> None:
    for shard in _shards(values):
        # transformers would load a pickle here, and a file outside the folder.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(
                f"{source}/{name} names '{shard}', not a safetensors file next to it; write the model again"
            )
        if folder == Path(source) and not (folder / _WEIGHTS).is_file() and not (folder / shard).is_file():
            raise UserError(f"{source} lacks {shard}, which {name} names; fetch the file, or write the model again")


def _shards(index: dict[str, Any]) -> list[str]:
    shards = index.get("weight_map", {})
    return sorted(set(map(str, shards.values() if isinstance(shards, dict) else [shards])))


def _holds(values: Any, key: str) -> bool:
    """Return whether a configuration sets a key, at any depth, to anything but null."""
    return any(found == key and value is not None for found, value, _ in sizes.entries(values))


def _code(values: Any) -> str | None:
    """Return the key by which a configuration asks for code: the model's own, or a kernel of the Hub."""
    for key, value, within in sizes.entries(values, "_implementation"):
        if key == "auto_map":
            return key
        if within and isinstance(value, str) and "/" in value:
            return within
    return None
