"""Manifests of artifacts: size and SHA-256 of every file, and a checksum of the manifest itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from sande import bounds
from sande.errors import UserError

MANIFEST = "manifest.json"
# A manifest begins with a checksum of all bytes behind it. A manifest of an earlier version ends without a newline.
_BEGIN, _END = b'{\n "checksums": {\n  "manifest": "', b"}\n"
_DECODER = json.JSONDecoder()
# Errors of reading a manifest that holds other things than this version writes.
GARBLED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# Errors of using a manifest of another form: one of an earlier version lacks what this one records.
OTHER_FORM = (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, IndexError, OverflowError)


def with_checksums(manifest: dict[str, Any], folder: Path) -> bytes:
    """Return the bytes of a manifest: the checksums of itself and of all files below `folder` come first."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(str(path))}
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
    plain = json.loads(json.dumps(manifest, sort_keys=True))
    text = json.dumps({"checksums": {"manifest": "", "files": files}, **plain}, indent=1).encode() + b"\n"
    return _BEGIN + hashlib.sha256(text[len(_BEGIN) :]).hexdigest().encode() + text[len(_BEGIN) :]


def problem_in(folder: Path | str, every_byte: bool = True) -> str | None:
    """Return in a few words what is wrong with the artifact in a folder; None where nothing is.

    Args:
        folder: of the artifact.
        every_byte: compare files by content too, not by size alone.

    Raises:
        PermissionError: this user may not read a file, which says nothing about its content.
    """
    name = MANIFEST
    try:
        for name, known in files_in(folder).items():
            found = os.stat(f"{folder}/{name}")
            if not stat.S_ISREG(found.st_mode):
                return f"{name} is not a file"
            if found.st_size != known["size"]:
                return f"{name} has {found.st_size} bytes, not {known['size']}"
            if every_byte and _sha256(f"{folder}/{name}") != known["sha256"]:
                return f"{name} has other content than was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except GARBLED:
        return f"{MANIFEST} is garbled"
    return None


def files_in(folder: Path | str) -> dict[str, Any]:
    """Return size and SHA-256 of each file that the manifest in a folder names, and parse no more of the manifest.

    Raises:
        OSError: the manifest cannot be read.
        One of `GARBLED`: it is garbled, or nested too deep.
    """
    text = checked_text(f"{folder}/{MANIFEST}")
    files: dict[str, Any] = _DECODER.raw_decode(text, text.index("{", 1))[0]["files"] if text else {}
    return files


def checked_text(path: str) -> str | None:
    """Return the text of a manifest whose checksum matches; None for one of an earlier version, which has no checksum.

    Raises:
        OSError: it cannot be read.
        ValueError: it is garbled.
    """
    try:
        raw = bounds.read(Path(path))
    except UserError as error:  # a pipe, or a file without end
        raise ValueError(str(error)) from None
    # No single flipped bit makes a manifest look like one of an earlier version.
    if not raw.startswith(_BEGIN) and not raw.endswith(_END):
        if not isinstance(json.loads(raw), dict):
            raise ValueError(f"{path} holds no manifest")
        return None
    end = len(_BEGIN) + 64
    if raw[:end] != _BEGIN + hashlib.sha256(raw[end:]).hexdigest().encode():
        raise ValueError(f"{path} is not what was written")
    return raw.decode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder, without its checksums.

    Raises:
        OSError or one of `GARBLED`: as `files_in`.
    """
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(checked_text(str(path)) or path.read_bytes())
    manifest.pop("checksums", None)
    return manifest


def _sha256(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another run removed it meanwhile, or this user may not look at it
            found = path.stat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
