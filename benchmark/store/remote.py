"""A store on a remote file system: it has the layout of one on disk, and works on local copies of artifacts.

The local copy is a store of its own, in which artifacts are made, checked and read. An artifact that was made is sent
with its manifest last, which makes it complete there. One that is to be read is fetched if the copy lacks it, and
checked byte for byte. So the nodes of a cluster need no disk in common. Leases are files that are created by
conditional requests. Models that are made once, predictions, and records of reports stay local.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmark.io.remote import AT_ONCE, Remote, cache, is_uri
from benchmark.store import checkpoints, copies, local
from benchmark.store.checkpoints import Sent
from benchmark.store.errors import UNFINISHED, DamagedError, dropped, gone, quarantine_message
from benchmark.store.leases import LeaseBackend, held, holders
from benchmark.store.local import DROPPED, FORMAT, MODELS, check_format
from benchmark.store.manifest import GARBLED, MANIFEST, files_in, problem_in
from benchmark.store.protocol import Store
from sande.errors import UserError
from sande.permissions import share_new_folder

_FOLDERS = (*MODELS, "evaluate", "search", DROPPED, "leases", "damaged", "checkpoints")


def open_store(place: str | Path, create: bool = True) -> Store:
    """Return the store at a path or URI.

    Args:
        place: path or URI.
        create: make the store if there is none.

    Raises:
        UserError: the place is blank; the remote one is unknown, refuses or does not answer; or as for `LocalStore`.
    """
    if not str(place).strip():
        raise UserError("the store is blank; set it to a folder, or to a URI such as s3://bucket/folder")
    return RemoteStore(str(place), create) if is_uri(place) else local.LocalStore(Path(place), create)


def reopen(place: str) -> Store:
    """Return the store of a run that is going on; unlike `open_store`, make none where it was removed.

    Raises:
        UserError: as `open_store`, or it was removed.
    """
    store = open_store(place, create=False)
    if not store.exists:
        raise gone(place)
    return store


def tidy(place: str) -> None:
    """Remove from this machine what killed workers and removed models left here, where the store is elsewhere."""
    if is_uri(place):
        with suppress(UserError):  # the stage will say what is wrong with the store
            reopen(place).clear_leftovers()


class RemoteStore:
    """A store below a folder of a remote file system, see `benchmark.store.protocol.Store`.

    Raises:
        UserError: the folder cannot be reached or written, is not a store, or has a newer format.
    """

    def __init__(self, uri: str, create: bool = True) -> None:
        self._remote = Remote(uri)
        self._local = local.LocalStore(cache(self._remote.uri, "stores"))
        self.location = self._remote.uri
        self.root, self.models, self.tracking = self._local.root, self._local.models, self._local.tracking
        self._known: dict[str, set[str]] = {}  # keys by kind that `complete` has found
        mark = self._remote.read("store.json")
        if mark is not None:
            check_format(mark, f"{self.location}/store.json", self.location)
        elif create:
            self._create()
        self._exists = create or mark is not None

    def _create(self) -> None:
        if foreign := set(self._remote.names()) - {*_FOLDERS, "store.json"}:  # another run may be making it, too
            raise UserError(
                f"{self.location} holds files ({min(foreign)}) but is not a store; choose an empty or new folder for "
                "--store"
            )
        try:
            created = self._remote.create("store.json", json.dumps({"format": FORMAT}).encode())
        except FileNotFoundError:
            raise UserError(f"{self.location} cannot be written: no such bucket; create the bucket first") from None
        if not created and (mark := self._remote.read("store.json")) is not None:
            check_format(mark, f"{self.location}/store.json", self.location)

    @property
    def _copy(self) -> local.LocalStore:
        """Return the local copy, which anyone may remove at any time."""
        if not self._local.exists:
            self._local = local.LocalStore(self.root)
        return self._local

    @property
    def exists(self) -> bool:
        """Return whether there is a store."""
        return self._exists

    def check_there(self) -> None:
        """Refuse to go on with a store that was removed.

        Raises:
            UserError: it was, or it does not answer.
        """
        if self._remote.read("store.json") is None:
            raise gone(self.location)

    def check_writable(self) -> None:
        """Write into the store, so that a refusal does not come after hours of work.

        Raises:
            UserError: it is gone, or refuses or does not answer.
        """
        self.check_there()
        name = f"leases/.writable-{uuid.uuid4().hex}"
        self._remote.write(name, b"")
        self._remote.delete(name)
        self._copy.check_writable()

    def path(self, kind: str, key: str) -> Path:
        """Return the folder of an artifact's local copy, which need not exist."""
        return self._copy.path(kind, key)

    def free(self) -> None:
        """Return None: no file system reports the space of a bucket."""

    def scratch(self, name: str) -> Path:
        """Make a new empty local folder for work in progress, marked with the process that owns it."""
        return self._copy.scratch(name)

    def clear_leftovers(self) -> None:
        """Remove what ended processes left: local work, leases there, and checkpoints of finished stages.

        Remove local copies of models that are no longer there, too. Other processes of this machine may be at work:
        what has a lease stays.
        """
        self._copy.clear_leftovers()
        holders(self.lease_backend())
        checkpoints.clear(self._remote, self.has)
        copies.clear(self._copy, self._keys_with_files, self.has, lambda: held(self.lease_backend()))

    def _keys_with_files(self, kind: str) -> set[str]:
        return {path.partition("/")[0] for path in self._remote.sizes(kind)}  # some file systems keep empty folders

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Return the keys of the complete artifacts; fetch their manifests, and small artifacts whole."""
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
        """Return what is wrong with an artifact there, see `Store.problem`; to compare every byte, fetch them all."""
        sizes = self._remote.sizes(f"{kind}/{key}")
        return self._fetch(kind, key, sizes, keep=False) if every_byte else self._problem_by_size(kind, key, sizes)

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artifact is there; ask no more for one that `complete` has found."""
        return key in self._known.get(kind, ()) or self.problem(kind, key) is None

    def _problem_by_size(self, kind: str, key: str, sizes: dict[str, int]) -> str | None:
        if absent := _absent(sizes):
            return absent
        if kind not in MODELS:
            return self._fetch(kind, key, sizes) if self._copy.problem(kind, key) else None
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
        """Return the files that the manifest lists, from a local copy of the right size; None where it is garbled."""
        folder = self.path(kind, key)
        for fetched in (False, True):  # a damaged local copy is fetched again
            with suppress(OSError, *GARBLED):
                if fetched or (folder / MANIFEST).stat().st_size == size:
                    return files_in(folder)
            if not fetched:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(FileNotFoundError):
                    self._remote.fetch([MANIFEST], folder, f"{kind}/{key}")
        return None

    def _fetch(self, kind: str, key: str, sizes: dict[str, int], keep: bool = True) -> str | None:
        """Fetch an artifact and return what is wrong with it; where nothing is and `keep`, make it the local copy."""
        if absent := _absent(sizes):
            return absent
        scratch = self.scratch(f"fetch-{kind}-{key[:12]}")
        try:
            with suppress(FileNotFoundError):  # a file that was removed meanwhile is missing in what was fetched
                self._remote.fetch(sizes, scratch, f"{kind}/{key}")
            problem = problem_in(scratch)
            if keep and problem is None:
                self._replace(scratch, kind, key)
            return problem
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _replace(self, scratch: Path, kind: str, key: str) -> None:
        final = self.path(kind, key)
        share_new_folder(final.parent)
        old = self.scratch("old")
        try:
            with suppress(FileNotFoundError):
                final.rename(old / key)
            try:
                scratch.rename(final)
            except OSError:  # another process of this machine was first
                if self._copy.problem(kind, key):
                    raise
            copies.mark(self.root, kind, key)
        finally:
            shutil.rmtree(old, ignore_errors=True)

    def read(self, kind: str, key: str) -> Path:
        """Return the folder of a local copy whose files are byte for byte as its stage left them.

        Raises:
            DamagedError: the remote files are not, and the artifact was quarantined; or another run dropped it or is
                sending it.
        """
        if self._copy.problem(kind, key, every_byte=True):
            sizes = self._remote.sizes(f"{kind}/{key}")
            problem = self._fetch(kind, key, sizes)
            if problem == UNFINISHED:
                raise DamagedError(f"{kind} {key[:8]} in the store: {UNFINISHED}; run again to continue")
            if not sizes and self.has(DROPPED, key):
                raise dropped(kind, key)
            if problem:
                raise DamagedError(f"{self.quarantine(kind, key, problem)}; run again to recompute it")
        return self.path(kind, key)

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """Return what the stage of an artifact recorded.

        Raises:
            DamagedError: it is missing or garbled.
        """
        with suppress(DamagedError):
            return self._copy.manifest(kind, key)
        with suppress(FileNotFoundError):
            self._remote.fetch([MANIFEST], self.path(kind, key), f"{kind}/{key}")
        return self._copy.manifest(kind, key)

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Yield at most `most` manifests of a kind, the first by key."""
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
        """Make an artifact here and send it; only send one that is here because sending it failed.

        Raises:
            UserError: the disk is full, or the remote file system refuses or does not answer.
        """
        if self._copy.problem(kind, key, every_byte=True):
            copies.unmark(self.root, kind, key)
            shutil.rmtree(self.path(kind, key), ignore_errors=True)
            self._copy.put(kind, key, build)
        sizes = self._remote.sizes(f"{kind}/{key}")
        if MANIFEST in sizes:
            if self._problem_by_size(kind, key, sizes) is None:
                copies.mark(self.root, kind, key)
                return
            self._move_out(kind, key)
        folder = self.path(kind, key)
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        self._remote.send([name for name in names if name != MANIFEST], folder, f"{kind}/{key}")
        self._remote.send([MANIFEST], folder, f"{kind}/{key}")
        copies.mark(self.root, kind, key)

    def quarantine_damaged(self, artifacts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Quarantine those of some artifacts (kinds and keys) that are damaged; yield one message each."""
        there: dict[str, set[str]] = {}
        for kind, key in artifacts:
            if key not in there.setdefault(kind, set(self.keys(kind))):
                continue
            if (problem := self.problem(kind, key)) and problem != UNFINISHED:
                yield self.quarantine(kind, key, problem)

    def quarantine(self, kind: str, key: str, problem: str) -> str:
        """Move a damaged artifact into quarantine, and return a clause that reports it."""
        return quarantine_message(kind, key, problem, self._move_out(kind, key))

    def _move_out(self, kind: str, key: str) -> str | None:
        """Return where the artifact is now; None where it is gone, or another run is sending it again."""
        self._known.get(kind, set()).discard(key)
        moved_to = f"damaged/{kind}-{key}-{uuid.uuid4().hex[:8]}"
        if _absent(self._remote.sizes(f"{kind}/{key}")):
            return None
        self._remote.move(f"{kind}/{key}", moved_to)
        return f"{self.location}/{moved_to}"

    def quarantined(self) -> dict[str, int]:
        """Return the bytes of each quarantined artifact by name."""
        found: dict[str, int] = {}
        for path, size in self._remote.sizes("damaged").items():
            name = path.partition("/")[0]
            found[name] = found.get(name, 0) + size
        return found

    def clear_quarantine(self) -> None:
        """Remove all quarantined artifacts."""
        self._remote.remove("damaged")

    def keys(self, kind: str) -> list[str]:
        """Return the keys of a kind's artifacts, damaged ones too, in order."""
        return self._remote.names(kind)

    def size(self, kind: str, key: str) -> int:
        """Return the bytes of an artifact's files by its manifest; 0 where it is not there."""
        try:
            return sum(known["size"] for known in files_in(self.path(kind, key)).values())
        except (OSError, *GARBLED):
            return sum(self._remote.sizes(f"{kind}/{key}").values())

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact, its manifest first, there and from the local copy."""
        self._known.get(kind, set()).discard(key)
        self._remote.delete(f"{kind}/{key}/{MANIFEST}")
        self._remote.remove(f"{kind}/{key}")
        shutil.rmtree(self.path(kind, key), ignore_errors=True)
        copies.unmark(self.root, kind, key)

    def checkpoints(self, kind: str, key: str, say: Callable[[str], None]) -> Sent:
        """Return the checkpoints of the stage that makes an artifact, which are sent while it runs."""
        below = f"checkpoints/{kind}/{key}"
        return Sent(self.path("checkpoints", kind) / key, self.root, self._remote, below, self.scratch, say)

    def lease_backend(self) -> LeaseBackend:
        """Return where the drivers on this store keep their leases."""
        return Remote(f"{self._remote.uri}/leases")


def _absent(sizes: Collection[str]) -> str | None:
    """Return the problem of an artifact of which only some files are there, or none; None where its manifest is."""
    if MANIFEST in sizes:
        return None
    return UNFINISHED if sizes else f"{MANIFEST} is missing"
