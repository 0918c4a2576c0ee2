"""A content-addressed store on disk: each artifact lies under the key of what it depends on, whole or not at all.

STORE/store.json                     format of the store
STORE/<kind>/<key>/manifest.json     written last; a folder without it is not an artifact
STORE/leases/                        which driver works on which artifact, see `benchmark.store.leases`
STORE/damaged/                       quarantine: artifacts that were not as their stage left them, until `store prune`
STORE/models/                        models made or converted once
STORE/reports/                       what each results folder was made of, see `benchmark.report.freshness`
STORE/tracking/                      losses of trainings, for TensorBoard, see `benchmark.execution.tracking`
STORE/unfinished/                    work in progress; the next run removes what a killed process left

A manifest lists every file of its artifact with size and SHA-256, and holds a checksum of itself. All are computed
once, when the artifact is put. Planning checks the whole manifest, models by the sizes of their files, and small
artifacts (outcomes, searches) byte for byte. A stage that reads an artifact checks every byte. A damaged artifact is
quarantined and computed again. Artifacts of earlier versions have no checksums and are taken as they are. An artifact
that this user may not read is not damaged: it stays, and an error says how to mend it.

All that is put into a store gets the permissions and the group of the store's folder, so who may use the folder may use
all of it, see `sande.permissions`.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmark.io import owners
from benchmark.io.files import clear_parts, raise_if_disk_full, remove, write_atomically
from benchmark.store.checkpoints import Kept
from benchmark.store.errors import (
    DamagedError,
    UnreadableError,
    dropped,
    gone,
    quarantine_message,
    reading,
    unwritable,
    writing,
)
from benchmark.store.leases import FileLeases, holders
from benchmark.store.manifest import GARBLED, MANIFEST, problem_in, read_manifest, size_of, with_checksums
from sande import bounds
from sande.errors import UserError
from sande.permissions import share, share_new_folder

FORMAT = 1
_LARGEST_MARK = 2**20  # bytes of store.json
MODELS = ("attack", "part", "defend")  # kinds whose artifacts are large; a part may be a model
DROPPED = "dropped"  # kind of the manifest that a dropped model leaves, see `benchmark.plan.retention`


class LocalStore:
    """A store in a folder of this machine, see `benchmark.store.protocol.Store`.

    Attributes:
        location: path of the folder, for messages and for `benchmark.store.remote.open_store`.
        root: the folder.
        models: folder of models that are made or converted once.
        tracking: folder of the losses of trainings, for TensorBoard.
        damaged: folder of quarantined artifacts.

    Raises:
        UserError: the folder cannot be written, is not a store, or has a newer format.
    """

    def __init__(self, root: Path, create: bool = True) -> None:
        self.root = root.absolute()
        self.location = str(self.root)
        self.models = self.root / "models"
        self.tracking = self.root / "tracking"
        self.damaged = self.root / "damaged"
        self._unfinished = self.root / "unfinished"
        mark = self.root / "store.json"
        try:
            with reading(self.root):
                content = bounds.read(mark, _LARGEST_MARK) if mark.is_file() else None
            if content is not None:
                check_format(content, str(mark), str(root))
            elif create:
                self.root.mkdir(parents=True, exist_ok=True)
                # Another process may be opening the same new store: its store.json, finished or not, is not foreign.
                # Nor is what stages still write after their store was removed.
                ours = (mark.name, f".{mark.name}", "unfinished", "checkpoints", "tracking", "leases")
                if any(not path.name.startswith(ours) for path in self.root.iterdir()):
                    raise UserError(f"{root} holds files but is not a store; choose an empty or new folder for --store")
                write_atomically(mark, json.dumps({"format": FORMAT}))
                share(mark, self.root)
                share_new_folder(self._unfinished)
        except OSError as error:
            raise unwritable(self.root, error) from None

    def check_writable(self) -> None:
        """Write into the store, so that a refusal does not come after hours of work.

        Raises:
            UserError: it is gone, or cannot be written.
        """
        self.check_there()
        folder = self.scratch("writable")
        try:
            with writing(self.root):
                (folder / "file").touch()
                for kind in (*MODELS, "evaluate"):
                    if (self.root / kind).is_dir() and not os.access(self.root / kind, os.W_OK | os.X_OK):
                        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root / kind))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check_there(self) -> None:
        """Refuse to go on with a store that was removed.

        Raises:
            UserError: it was.
        """
        if not self.exists:
            raise gone(self.location)

    @property
    def exists(self) -> bool:
        """Return whether there is a store."""
        return (self.root / "store.json").is_file()

    def path(self, kind: str, key: str) -> Path:
        """Return the folder of an artifact, which need not exist."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artifact is there and, as far as planning looks, undamaged."""
        return self.problem(kind, key) is None

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Return the keys of those artifacts that `has` finds; one listing of the folder excludes most others."""
        return {key for key in set(keys).intersection(self.keys(kind)) if self.has(kind, key)}

    def problem(self, kind: str, key: str, every_byte: bool = False) -> str | None:
        """Return in a few words what is wrong with an artifact; None where nothing is.

        Args:
            kind: of the artifact.
            key: of the artifact.
            every_byte: compare files of a model by content too, not by size alone.

        Raises:
            UnreadableError: this user may not read it.
        """
        with reading(self.root):
            return problem_in(str(self.path(kind, key)), every_byte or kind not in MODELS)

    def read(self, kind: str, key: str) -> Path:
        """Return the folder of an artifact whose files are byte for byte as its stage left them.

        Raises:
            DamagedError: they are not, and the artifact was quarantined; or another run dropped it.
        """
        problem = self.problem(kind, key, every_byte=True)
        if problem:
            if not os.path.lexists(self.path(kind, key)) and self.has(DROPPED, key):
                raise dropped(kind, key)
            raise DamagedError(f"{self.quarantine(kind, key, problem)}; run again to recompute it")
        return self.path(kind, key)

    def quarantine_damaged(self, artifacts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Quarantine those of some artifacts (kinds and keys) that are damaged; yield one message each."""
        for kind, key in artifacts:
            if os.path.lexists(self.path(kind, key)) and (problem := self.problem(kind, key)):
                yield f"{self.quarantine(kind, key, problem)}; it will be recomputed"

    def quarantine(self, kind: str, key: str, problem: str) -> str:
        """Move a damaged artifact into quarantine, and return a clause that reports it.

        Raises:
            UserError: it cannot be moved.
        """
        return quarantine_message(kind, key, problem, self._move_out(kind, key))

    def _move_out(self, kind: str, key: str) -> Path | None:
        """Return where the artifact is now; None where there was none, or another process moved it first."""
        folder, moved_to = self.path(kind, key), self.damaged / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        try:
            share_new_folder(self.damaged)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                folder.chmod(folder.stat().st_mode | 0o700)  # a folder without the right to write cannot be moved
            folder.rename(moved_to)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{folder} is damaged and cannot be quarantined ({error.strerror}); check its owner, or remove it"
            ) from None
        return moved_to

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """Return what the stage of an artifact recorded.

        Raises:
            DamagedError: it is missing or garbled.
            UnreadableError: this user may not read it.
        """
        try:
            with reading(self.root):
                return read_manifest(self.path(kind, key))
        except (OSError, *GARBLED):
            place = self.path(kind, key) / MANIFEST
            raise DamagedError(f"{place} is missing or garbled; run again to recompute it") from None

    def keys(self, kind: str) -> list[str]:
        """Return the keys of a kind's artifacts, damaged ones too, in order.

        Raises:
            UnreadableError: this user may not list them.
        """
        try:
            with reading(self.root):
                return sorted(name for name in os.listdir(self.root / kind) if not name.startswith("."))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # there is no such folder
                return []
            raise

    def size(self, kind: str, key: str) -> int:
        """Return the bytes of an artifact's files; 0 where it is not there."""
        return size_of(self.path(kind, key))

    def free(self) -> int:
        """Return the free bytes of the disk."""
        return shutil.disk_usage(next(path for path in (self.root, *self.root.parents) if path.is_dir())).free

    def quarantined(self) -> dict[str, int]:
        """Return the bytes of each quarantined artifact by name."""
        return {path.name: size_of(path) for path in sorted(self.damaged.iterdir())} if self.damaged.is_dir() else {}

    def clear_quarantine(self) -> None:
        """Remove all quarantined artifacts."""
        shutil.rmtree(self.damaged, ignore_errors=True)

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact; no reader sees half of it meanwhile.

        Raises:
            UserError: it cannot be removed.
        """
        scratch = self.scratch("removed")
        try:
            self.path(kind, key).rename(scratch / key)
        except OSError as error:
            raise UserError(f"{self.path(kind, key)} cannot be removed ({error.strerror}); check its owner") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Yield at most `most` manifests of a kind, the first by key: a random choice, since keys are hashes."""
        for path in itertools.islice(sorted(self.path(kind, "").glob(f"*/{MANIFEST}")), most):
            with suppress(DamagedError, UnreadableError):
                yield self.manifest(kind, path.parent.name)

    def put(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
        """Make an artifact: `build` fills a folder and returns the manifest; one rename puts it in place.

        Where another process made the same one meanwhile, that one stays.

        Raises:
            UserError: the disk is full, the store cannot be written, or it was removed; what was begun is removed.
        """
        scratch = self.scratch(f"{kind}-{key[:12]}")
        try:
            try:
                with raise_if_disk_full(self.root):
                    manifest = build(scratch)
            except Exception:
                self.check_there()
                raise
            self.check_there()
            with writing(self.root):
                write_atomically(scratch / MANIFEST, with_checksums(manifest, scratch))
                share(scratch, self.root)
                self._move_in(scratch, kind, key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _move_in(self, scratch: Path, kind: str, key: str) -> None:
        final = self.path(kind, key)
        share_new_folder(final.parent)
        if final.exists() and not self.has(kind, key):
            self._move_out(kind, key)
        try:
            scratch.rename(final)
        except OSError:
            if not self.has(kind, key):
                raise

    def checkpoints(self, kind: str, key: str, say: Callable[[str], None]) -> Kept:
        """Return the checkpoints of the stage that makes an artifact."""
        return Kept(self.root / "checkpoints" / kind / key, self.root)

    def lease_backend(self) -> FileLeases:
        """Return where the drivers on this store keep their leases."""
        return FileLeases(self.root / "leases")

    def scratch(self, name: str) -> Path:
        """Make a new empty folder for work in progress, marked with the process that owns it.

        Raises:
            UserError: the disk is full, the store cannot be written, or it was removed.
        """
        folder = self._unfinished / f"{owners.me()}@{name}-{uuid.uuid4().hex[:8]}"
        try:
            with writing(self.root):
                share_new_folder(self._unfinished)
                folder.mkdir()
        except FileNotFoundError:
            raise gone(self.location) from None
        share(folder, self.root)
        owners.renew(folder)
        return folder

    def clear_leftovers(self) -> None:
        """Remove what ended processes left: work, leases, and checkpoints of finished stages.

        What this user may not remove, and what is in the place of a folder of the store, stays.
        """
        clear_parts(self.root)
        with suppress(UserError):
            holders(self.lease_backend())
        for checkpoints in self.root.glob("checkpoints/*/*"):
            with suppress(OSError):
                if self.path(*checkpoints.parts[-2:]).exists():
                    remove(checkpoints)
        for work in self._unfinished.glob("*"):
            owner = owners.parse("@".join(work.name.split("@", 2)[:2]))
            if owner and owners.is_left(work, owner):
                remove(work)


def check_format(mark: bytes, path: str, store: str) -> None:
    """Refuse a store of a newer version.

    Args:
        mark: content of its store.json.
        path: of that file.
        store: location of the store.

    Raises:
        UserError: the format is newer than this version, or the file is damaged.
    """
    try:
        newer = json.loads(mark)["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path} is damaged; set it to {{"format": {FORMAT}}}, or choose another --store') from None
    if newer:
        raise UserError(
            f"store {store} has format {json.loads(mark)['format']}, and this version reads up to {FORMAT}; update "
            "sande-bench, or choose another --store"
        )
