"""A store on a remote file system: laid out as one on a disk, and worked on through a local copy of what is needed.

An artifact is made, checked and read in the local copy, which is a store of its own. After it was made, its files are
sent, its manifest last, which makes it complete there; before it is read, it is fetched if it is not here, and checked
byte for byte. So the nodes of a cluster need no disk in common. Leases are files that are created by conditional
requests. Models that are made once, predictions, and what reports were made of stay local.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmark.remote import AT_ONCE, Remote, cache, is_uri
from benchmark.store import FORMAT, MANIFEST, MODELS, DamagedError, Store, check_format, files_in, problem_in
from sande.errors import UserError

_FOLDERS = (*MODELS, "evaluate", "search", "dropped", "leases", "damaged")


def open_store(place: str | Path, create: bool = True) -> Store:
    """The store at a path or URI.

    Raises:
        UserError: as `Store`, or the remote file system is unknown, refuses or does not answer.
    """
    return RemoteStore(str(place), create) if is_uri(place) else Store(Path(place), create)


class RemoteStore(Store):
    """Artifacts below a folder of a remote file system."""

    def __init__(self, uri: str, create: bool = True) -> None:
        self._remote = Remote(uri)
        super().__init__(cache(self._remote.uri, "stores"))
        self._local = Store(self.root)
        self.location = self._remote.uri
        self._known: dict[str, set[str]] = {}  # keys by kind that `complete` has found
        mark = self._remote.read("store.json")
        if mark is not None:
            check_format(mark, f"{self.location}/store.json", self.location)
        elif create:
            if foreign := set(self._remote.names()) - set(_FOLDERS):
                raise UserError(
                    f"{self.location} holds files ({min(foreign)}) but is no store; choose an empty or new folder for "
                    "--store"
                )
            try:
                self._remote.write("store.json", json.dumps({"format": FORMAT}).encode())
            except FileNotFoundError:
                raise UserError(
                    f"{self.location} cannot be written, as there is no such bucket; make it first"
                ) from None
        self._exists = create or mark is not None

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return self._exists

    def free(self) -> int | None:
        """Nobody knows."""
        return None

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Those of the artifacts that are there; their manifests, and small artifacts whole, are here afterwards."""
        found: dict[str, dict[str, int]] = {}
        for path, size in self._remote.sizes(kind).items():
            key, _, name = path.partition("/")
            found.setdefault(key, {})[name] = size
        wanted = set(keys)
        asked = sorted(wanted & set(found))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            problems = list(pool.map(lambda key: self._problem_by_size(kind, key, found[key]), asked))
        complete = {key for key, problem in zip(asked, problems, strict=True) if problem is None}
        self._known[kind] = self._known.get(kind, set()) - wanted | complete
        return complete

    def problem(self, kind: str, key: str, every_byte: bool = False) -> str | None:
        """What is wrong with an artifact there, see `Store.problem`; every byte is fetched anew to be compared."""
        sizes = self._remote.sizes(f"{kind}/{key}")
        return self._fetch(kind, key, sizes, keep=False) if every_byte else self._problem_by_size(kind, key, sizes)

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there; what `complete` has found is not looked for again."""
        return key in self._known.get(kind, ()) or self.problem(kind, key) is None

    def _problem_by_size(self, kind: str, key: str, sizes: dict[str, int]) -> str | None:
        if MANIFEST not in sizes:
            return f"{MANIFEST} is missing"
        if kind not in MODELS:
            return self._fetch(kind, key, sizes) if self._local.problem(kind, key) else None
        files = self._files(kind, key, sizes[MANIFEST])
        if files is None:
            return f"{MANIFEST} is garbled"
        for name, known in files.items():
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != known["size"]:
                return f"{name} has {sizes[name]} bytes, not {known['size']}"
        return None

    def _files(self, kind: str, key: str, size: int) -> dict[str, Any] | None:
        """What the manifest says of files, by a local copy of it that has the right size; None where it is garbled."""
        folder = self.path(kind, key)
        for fetched in (False, True):  # a copy that is damaged here is fetched anew
            with suppress(OSError, ValueError, RecursionError):
                if fetched or (folder / MANIFEST).stat().st_size == size:
                    return files_in(folder)
            if not fetched:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(FileNotFoundError):
                    self._remote.fetch([MANIFEST], folder, f"{kind}/{key}")
        return None

    def _fetch(self, kind: str, key: str, sizes: dict[str, int], keep: bool = True) -> str | None:
        """What is wrong with what is fetched; where nothing is, it becomes the local copy if it is to be kept."""
        scratch = self.scratch(f"fetch-{kind}-{key[:12]}")
        try:
            with suppress(FileNotFoundError):  # removed meanwhile: then it is missing in what was fetched
                self._remote.fetch(sizes, scratch, f"{kind}/{key}")
            problem = problem_in(scratch)
            if keep and problem is None:
                self._replace(scratch, kind, key)
            return problem
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _replace(self, scratch: Path, kind: str, key: str) -> None:
        final = self.path(kind, key)
        final.parent.mkdir(exist_ok=True)
        old = self.scratch("old")
        try:
            with suppress(FileNotFoundError):
                final.rename(old / key)
            try:
                scratch.rename(final)
            except OSError:  # another process of this machine was first
                if self._local.problem(kind, key):
                    raise
        finally:
            shutil.rmtree(old, ignore_errors=True)

    def read(self, kind: str, key: str) -> Path:
        """Folder of a local copy whose files are byte for byte as its stage left them.

        Raises:
            DamagedError: what is there is not; it was set aside.
        """
        if self._local.problem(kind, key, every_byte=True) and (
            problem := self._fetch(kind, key, self._remote.sizes(f"{kind}/{key}"))
        ):
            raise DamagedError(f"{self.set_aside_as(kind, key, problem)}; run again to make it anew")
        return self.path(kind, key)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """What its stage wrote down about an artifact.

        Raises:
            DamagedError: it is missing or garbled.
        """
        with suppress(DamagedError):
            return self._local.manifest(kind, key)
        with suppress(FileNotFoundError):
            self._remote.fetch([MANIFEST], self.path(kind, key), f"{kind}/{key}")
        return self._local.manifest(kind, key)

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Of a kind's artifacts those that come first by name."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for manifest in pool.map(lambda key: self._manifest_or_none(kind, key), self.keys(kind)[:most]):
                if manifest:
                    yield manifest

    def _manifest_or_none(self, kind: str, key: str) -> dict[str, Any] | None:
        try:
            return self.manifest(kind, key)
        except DamagedError:
            return None

    def put(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
        """Make an artifact here and send it; one that is here, since sending it failed, is only sent.

        Raises:
            UserError: the disk is full, or the remote file system refuses or does not answer.
        """
        if self._local.problem(kind, key, every_byte=True):
            shutil.rmtree(self.path(kind, key), ignore_errors=True)
            self._local.put(kind, key, build)
        sizes = self._remote.sizes(f"{kind}/{key}")
        if MANIFEST in sizes:
            if self._problem_by_size(kind, key, sizes) is None:
                return
            self._set_aside(kind, key)
        folder = self.path(kind, key)
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        self._remote.send([name for name in names if name != MANIFEST], folder, f"{kind}/{key}")
        self._remote.send([MANIFEST], folder, f"{kind}/{key}")

    def set_aside_damaged(self, artifacts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Of kinds and keys, those that are there but damaged are moved away; a line tells of each."""
        there: dict[str, set[str]] = {}
        for kind, key in artifacts:
            if key in there.setdefault(kind, set(self.keys(kind))) and (problem := self.problem(kind, key)):
                yield self.set_aside_as(kind, key, problem)

    def _set_aside(self, kind: str, key: str) -> str | None:
        self._known.get(kind, set()).discard(key)
        aside = f"damaged/{kind}-{key}-{uuid.uuid4().hex[:8]}"
        if not self._remote.sizes(f"{kind}/{key}"):
            return None
        self._remote.move(f"{kind}/{key}", aside)
        return f"{self.location}/{aside}"

    def set_aside(self) -> dict[str, int]:
        """What was set aside as damaged, and the bytes of each."""
        found: dict[str, int] = {}
        for path, size in self._remote.sizes("damaged").items():
            name = path.partition("/")[0]
            found[name] = found.get(name, 0) + size
        return found

    def clear_set_aside(self) -> None:
        """Remove what was set aside as damaged."""
        self._remote.remove("damaged")

    def keys(self, kind: str) -> list[str]:
        """Keys of a kind's artifacts, damaged ones too, in order."""
        return self._remote.names(kind)

    def size(self, kind: str, key: str) -> int:
        """Bytes of an artifact's files by its manifest; 0 where it is not there."""
        try:
            return sum(known["size"] for known in files_in(self.path(kind, key)).values())
        except (OSError, ValueError, RecursionError):
            return sum(self._remote.sizes(f"{kind}/{key}").values())

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact, its manifest first, here and there."""
        self._known.get(kind, set()).discard(key)
        self._remote.delete(f"{kind}/{key}/{MANIFEST}")
        self._remote.remove(f"{kind}/{key}")
        shutil.rmtree(self.path(kind, key), ignore_errors=True)

    def board(self) -> Board:
        """Where the drivers on this store tell each other what they are at."""
        return Board(self._remote)


class Board:
    """Leases on a remote file system."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def names(self) -> list[str]:
        """Of all leases."""
        return self._remote.names("leases")

    def read(self, name: str) -> bytes | None:
        """Content of one; None where it is gone."""
        return self._remote.read(f"leases/{name}")

    def create(self, name: str, content: bytes) -> bool:
        """Make one; False where there is one of that name."""
        return self._remote.create(f"leases/{name}", content)

    def write(self, name: str, content: bytes) -> None:
        """Change one, whole or not at all."""
        self._remote.write(f"leases/{name}", content)

    def delete(self, name: str) -> None:
        """Remove one, if it is there."""
        self._remote.delete(f"leases/{name}")
