"""A content-addressed store: what a stage made lies under the key of what it depends on, whole or not at all.

STORE/store.json                     format of the store
STORE/<kind>/<key>/manifest.json     written last; a folder without it is no artifact
STORE/models/                        models made or converted once
STORE/reports/                       what each results folder was made of, see `benchmark.uptodate`
STORE/unfinished/                    work in progress; whatever a killed process left is cleared by the next run
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sande.errors import UserError

FORMAT = 1


class Store:
    """Artifacts below a folder.

    Raises:
        UserError: the folder cannot be written, is no store, or has a newer format.
    """

    def __init__(self, root: Path, create: bool = True) -> None:
        self.root = root.absolute()
        self.models = self.root / "models"
        self._unfinished = self.root / "unfinished"
        mark = self.root / "store.json"
        try:
            if mark.is_file():
                found = json.loads(mark.read_text(encoding="utf-8"))["format"]
                if found > FORMAT:
                    raise UserError(
                        f"store {root} has format {found}, and this version reads up to {FORMAT}; update sande-bench "
                        "or choose another --store"
                    )
            elif create:
                self.root.mkdir(parents=True, exist_ok=True)
                # Another process may be opening the same new store: its mark, finished or not, is not foreign.
                ours = (mark.name, f".{mark.name}", self._unfinished.name)
                if any(not path.name.startswith(ours) for path in self.root.iterdir()):
                    raise UserError(f"{root} holds files but is no store; choose an empty or new folder for --store")
                write_atomically(mark, json.dumps({"format": FORMAT}))
            if create:
                self._unfinished.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"store {root} cannot be written ({error.strerror}); choose another --store") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{mark} is damaged; restore it as {{"format": {FORMAT}}} or choose another --store'
            ) from None

    def path(self, kind: str, key: str) -> Path:
        """Folder of an artifact, there or not."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is complete."""
        return (self.path(kind, key) / "manifest.json").is_file()

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Those of the artifacts that are complete; one listing of the folder finds most of what is not there."""
        try:
            there = os.listdir(self.root / kind)
        except FileNotFoundError:
            return set()
        return {key for key in set(keys).intersection(there) if self.has(kind, key)}

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """What its stage wrote down about an artifact."""
        manifest: dict[str, Any] = json.loads((self.path(kind, key) / "manifest.json").read_text(encoding="utf-8"))
        return manifest

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Of a kind's artifacts those that come first by name, which is no order of theirs, as names are hashes."""
        for path in itertools.islice(sorted(self.path(kind, "").glob("*/manifest.json")), most):
            yield self.manifest(kind, path.parent.name)

    def put(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
        """Make an artifact: `build` fills a folder and returns the manifest; the artifact appears by one rename.

        If another process made the same one meanwhile, that one stays.
        """
        scratch = self.scratch(f"{kind}-{key[:12]}")
        try:
            manifest = build(scratch)
            write_atomically(scratch / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
            final = self.path(kind, key)
            final.parent.mkdir(exist_ok=True)
            if final.is_dir() and not self.has(kind, key):
                final.rename(self.scratch("damaged") / key)  # no artifact, so nothing is lost
            try:
                scratch.rename(final)
            except OSError:
                if not self.has(kind, key):
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def scratch(self, name: str) -> Path:
        """A new empty folder for work in progress, marked with the process that owns it."""
        folder = self._unfinished / f"{os.getpid()}@{socket.gethostname()}@{name}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        return folder

    def clear_leftovers(self) -> None:
        """Remove unfinished work of this machine's processes that are gone."""
        for folder in self._unfinished.iterdir():
            owner = re.fullmatch(r"(?P<pid>\d+)@(?P<host>.+?)@.*", folder.name)
            if owner and owner["host"] == socket.gethostname() and not _alive(int(owner["pid"])):
                shutil.rmtree(folder, ignore_errors=True)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all, as `atomically` does."""
    with atomically(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file beside its place, at the end flushed to disk and renamed there, so that no reader sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
