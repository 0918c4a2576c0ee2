"""Write files whole or not at all, report a full disk, and clear what killed processes left."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from benchmark.io import owners
from sande.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Messages about a full disk from libraries that write files in Rust (safetensors, tokenizers), and from PyTorch.
_NO_SPACE = ("no space left on device", "quota exceeded", "inline_container")


class FullError(UserError):
    """No space is left."""


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all, as `atomically` does."""
    with atomically(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a file next to `path`; at the end flush it to disk and rename it, so that no reader sees half of it."""
    part = path.with_name(f".{path.name}{part_suffix()}")
    try:
        with raise_if_disk_full(path.parent):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold what only one process of this machine may do at a time; the lock is an empty file, which stays."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def part_suffix() -> str:
    """Return how the name of a half-written file or folder ends; it names the process that writes it."""
    return f".{owners.me()}.part"


def clear_parts(folder: Path) -> None:
    """Remove the half-written files and folders below a folder that ended processes left; skip what cannot be removed.

    See `benchmark.io.owners.is_left`.
    """
    for path in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):
        found = re.fullmatch(r".*\.(?P<owner>[^.].*@.+)\.part", path.name)
        owner = owners.parse(found["owner"]) if found else None
        if owner and owners.is_left(path, owner):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; leave what cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def raise_if_disk_full(folder: Path) -> Iterator[None]:
    """Raise a `FullError` where the block, which writes below `folder`, fails for want of space.

    Raises:
        FullError: the disk is full, or a quota is used up.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise FullError(
            f"{folder}: no space is left; free some ('sande-bench store prune' may help) and run again"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error reports a full disk or an exhausted quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error).lower() for sign in _NO_SPACE)
