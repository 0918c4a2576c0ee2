"""Folders on any file system that fsspec supports (S3, GCS, …), with retries; and results that are kept on one.

Work is done on local files: remote ones are fetched into, and sent from, a folder below `SANDE_CACHE`, by default
~/.cache/sande-bench, which may be removed at any time. The file system's client finds the credentials (environment,
files, the machine's role). They are never part of a URI, since URIs are shown.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from benchmark.io.files import raise_if_disk_full
from sande.errors import UserError

R = TypeVar("R")
CACHE = "SANDE_CACHE"
TRIES, FIRST_PAUSE = 7, 0.25  # of an operation; each pause doubles: 16 seconds in all
AT_ONCE = 8  # files
# How a local folder refuses: this user may not write it, or something else is in the place of a folder or file.
_REFUSED = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)
# Extras of this project that install a file system.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_uri(place: str | Path) -> bool:
    """Return whether a place is a URI, not a path of this machine."""
    return "://" in str(place)


def below(place: str, name: str) -> str:
    """Return a subfolder of a path or URI."""
    return f"{place.rstrip('/')}/{name}" if is_uri(place) else str(Path(place) / name)


def cache(place: str, kind: str) -> Path:
    """Return the local folder that holds copies of a remote one."""
    root = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "sande-bench")
    return root / kind / hashlib.sha256(place.encode()).hexdigest()[:16]


class Remote:
    """A folder of a remote file system. Every operation that fails is retried while that may help.

    Raises:
        UserError: the file system is unknown or not installed, or the URI holds credentials.
    """

    def __init__(self, uri: str) -> None:
        scheme, colon, rest = uri.partition("://")
        self.uri = f"{scheme.lower()}{colon}{rest}".rstrip("/")  # fsspec knows its file systems in lower case alone
        parts = urlsplit(uri)
        if "@" in parts.netloc or parts.query:
            raise UserError(
                f"{parts.scheme}:// address holds credentials or options, which would be shown; remove them, and set "
                "them in the environment or files of the file system's client"
            )
        fsspec = importlib.import_module("fsspec")
        try:
            self._fs, self._root = fsspec.url_to_fs(self.uri, use_listings_cache=False)
        except ImportError:
            extra = EXTRAS.get(parts.scheme)
            how = f"pip install 'sande-bench[{extra}]'" if extra else f"what fsspec needs for {parts.scheme}://"
            raise UserError(f"{self.uri}: its file system is not installed; install it: {how}") from None
        except ValueError:
            raise UserError(
                f"{self.uri}: no file system is called '{parts.scheme}'; use a path, or a URI as s3://bucket/folder"
            ) from None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the bytes of all files below a folder, by path from there; none where there is no such folder."""
        top = self._at(below)
        found: Mapping[str, Any] = self._do(lambda: self._fs.find(top, detail=True))
        start = len(self._fs._strip_protocol(top).rstrip("/")) + 1
        return {name[start:]: info["size"] for name, info in found.items() if info["type"] == "file"}

    def names(self, below: str = "") -> list[str]:
        """Return the names of files and folders in a folder."""
        try:
            found: list[str] = self._do(lambda: self._fs.ls(self._at(below), detail=False))
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {"", ".", ".."})

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""
        try:
            content: bytes = self._do(lambda: self._fs.cat_file(self._at(name)))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        self._do(lambda: self._fs.pipe_file(self._at(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file and return True; return False if it exists. On S3 and GCS this is one conditional request."""
        try:
            self._do(lambda: self._fs.pipe_file(self._at(name), content, mode="create"))
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

        def gone() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

        self._do(gone)

    def fetch(self, names: Iterable[str], folder: Path, below: str = "") -> None:
        """Copy files below a remote folder into a local one.

        Raises:
            FullError: the local disk is full.
            UserError: the name of a file, which may be any text there, leads out of the local folder, or that folder
                cannot be written.
        """

        def one(name: str) -> None:
            path = folder / name
            if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
                raise UserError(f"{self.uri}: the name of a file, '{name}', leads out of its folder; use another place")

            def get() -> None:
                with _writing(folder):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(self._at(f"{below}/{name}"), str(path))

            self._do(get)

        _each(one, names)

    def send(self, names: Iterable[str], folder: Path, below: str = "") -> None:
        """Copy files of a local folder below a remote one."""

        def one(name: str) -> None:
            self._do(lambda: self._fs.put_file(str(folder / name), self._at(f"{below}/{name}")))

        _each(one, names)

    def move(self, below: str, to: str) -> None:
        """Move all files of a remote folder to another one, the last by name last."""
        for name in sorted(self.sizes(below)):
            self._do(functools.partial(self._fs.cp_file, self._at(f"{below}/{name}"), self._at(f"{to}/{name}")))
        self.remove(below)

    def remove(self, below: str) -> None:
        """Remove a remote folder with all files."""
        _each(lambda name: self.delete(f"{below}/{name}"), self.sizes(below))

    def _at(self, name: str) -> str:
        return "/".join(filter(None, (self._root, *name.split("/"))))

    def _do(self, call: Callable[[], R]) -> R:
        """Call, and retry where that may help.

        Raises:
            FileNotFoundError, FileExistsError: as the file system reports.
            UserError: access is refused, all tries failed, or `call` raises it.
        """
        for number in range(TRIES):
            try:
                return call()
            except (FileNotFoundError, FileExistsError, UserError):
                raise
            except Exception as error:  # file systems raise what their client libraries do
                reason = (str(error).strip() or type(error).__name__).split("\n")[0]
                if isinstance(error, PermissionError) or "credentials" in reason.lower():
                    raise UserError(
                        f"{self.uri}: access is refused ({reason}); check this machine's credentials and their rights"
                    ) from None
                if number + 1 == TRIES:
                    raise UserError(f"{self.uri}: requests fail ({reason}); run again to continue") from None
                time.sleep(FIRST_PAUSE * 2**number)
        raise AssertionError


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise a `UserError` that names a local folder where the block fails for that folder, not for the remote one.

    Raises:
        FullError: the disk is full, or a quota is used up.
        UserError: this user may not write the folder, it is read-only, or something else is in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with raise_if_disk_full(folder):
                raise
        refused = isinstance(error, _REFUSED) or error.errno == errno.EROFS
        if not refused or not Path(str(error.filename or "")).is_relative_to(folder):
            raise
        raise UserError(
            f"{folder} cannot be written ({error.filename}: {error.strerror}); check its owner and permissions, or set "
            f"{CACHE} to another folder"
        ) from None


def _each(work: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, names))
