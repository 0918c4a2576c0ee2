"""A content-addressed store: what a stage made lies under the key of what it depends on, whole or not at all.

STORE/store.json                     format of the store
STORE/<kind>/<key>/manifest.json     written last; a folder without it is no artifact
STORE/leases/                        who is at work on what, see `benchmark.leases`
STORE/damaged/                       artifacts that were not as their stage left them; `store prune` clears them
STORE/models/                        models made or converted once
STORE/reports/                       what each results folder was made of, see `benchmark.uptodate`
STORE/tracking/                      losses of trainings, for TensorBoard, see `benchmark.tracking`
STORE/unfinished/                    work in progress; whatever a killed process left is cleared by the next run

A manifest names every file of its artifact with size and SHA-256, and carries one of itself, all taken once, when the
artifact is put. Whoever asks whether an artifact is there (planning) has the manifest checked whole, models by the
sizes of their files, and what is small (outcomes, searches) byte for byte; whoever reads one (a stage) has it checked
byte for byte. An artifact that fails is none: it is set aside, and made anew. Those of earlier versions have no
checksums, and are taken as they are.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.leases import Board

FORMAT = 1
MANIFEST = "manifest.json"
MODELS = ("attack", "defend")  # kinds whose artifacts are large
# So begins a manifest: its first checksum is that of all that stands behind it. One of old ends without a newline.
_BEGIN, _END = b'{\n "checksums": {\n  "manifest": "', b"}\n"
_DECODER = json.JSONDecoder()
# What the libraries that write files by Rust (safetensors, tokenizers) say of a full disk, and what PyTorch does.
_NO_SPACE = ("no space left on device", "quota exceeded", "inline_container")


class FullError(UserError):
    """No space is left."""


class DamagedError(UserError):
    """An artifact that is not as its stage left it."""


class Store:
    """Artifacts below a folder.

    Attributes:
        location: of the store, for people and for `benchmark.remote_store.open_store`.
        root: the folder, on this machine.

    Raises:
        UserError: the folder cannot be written, is no store, or has a newer format.
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
            if mark.is_file():
                check_format(mark.read_bytes(), str(mark), str(root))
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

    @property
    def exists(self) -> bool:
        """Whether there is a store."""
        return (self.root / "store.json").is_file()

    def path(self, kind: str, key: str) -> Path:
        """Folder of an artifact, there or not."""
        return self.root / kind / key

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there and, as far as planning looks, undamaged."""
        return self.problem(kind, key) is None

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Those of the artifacts that `has` finds; one listing of the folder finds most of what is not there."""
        try:
            there = os.listdir(self.root / kind)
        except FileNotFoundError:
            return set()
        return {key for key in set(keys).intersection(there) if self.has(kind, key)}

    def problem(self, kind: str, key: str, every_byte: bool = False) -> str | None:
        """What is wrong with an artifact, in a few words; None where nothing is.

        Args:
            kind: of the artifact.
            key: of the artifact.
            every_byte: compare files of a model by content too, not by size alone.
        """
        return _problem(str(self.path(kind, key)), every_byte or kind not in MODELS)

    def read(self, kind: str, key: str) -> Path:
        """Folder of an artifact whose files are byte for byte as its stage left them.

        Raises:
            DamagedError: they are not; what there is was set aside.
        """
        problem = self.problem(kind, key, every_byte=True)
        if problem:
            raise DamagedError(f"{self.set_aside_as(kind, key, problem)}; run again to make it anew")
        return self.path(kind, key)

    def set_aside_damaged(self, artifacts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Of kinds and keys, those that are there but damaged are moved away; a line tells of each."""
        for kind, key in artifacts:
            if os.path.lexists(self.path(kind, key)) and (problem := self.problem(kind, key)):
                yield f"{self.set_aside_as(kind, key, problem)}; it is made anew"

    def set_aside_as(self, kind: str, key: str, problem: str) -> str:
        """Move what there is of a damaged artifact away, and tell of it in a line without an end."""
        aside = self._set_aside(kind, key)
        return f"{kind} {key[:8]} in the store is damaged ({problem}){f', and set aside as {aside}' if aside else ''}"

    def _set_aside(self, kind: str, key: str) -> Path | str | None:
        """Where it went; None where there was nothing, or another process was first.

        Raises:
            UserError: it cannot be moved.
        """
        folder, aside = self.path(kind, key), self.damaged / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        try:
            self.damaged.mkdir(exist_ok=True)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                folder.chmod(0o700)  # a folder that may not be written cannot be moved
            folder.rename(aside)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(
                f"{folder} is damaged and cannot be set aside ({error.strerror}); look at its owner, or remove it"
            ) from None
        return aside

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """What its stage wrote down about an artifact.

        Raises:
            DamagedError: it is missing or garbled.
        """
        path = self.path(kind, key) / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(_checked(str(path)) or path.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise DamagedError(f"{path} is missing or garbled; run again to make it anew") from None
        manifest.pop("checksums", None)
        return manifest

    def keys(self, kind: str) -> list[str]:
        """Keys of a kind's artifacts, damaged ones too, in order."""
        try:
            return sorted(name for name in os.listdir(self.root / kind) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def size(self, kind: str, key: str) -> int:
        """Bytes of an artifact's files; 0 where it is not there."""
        return _size(self.path(kind, key))

    def free(self) -> int | None:
        """Bytes that the disk has left; None where that is not known."""
        return shutil.disk_usage(next(path for path in (self.root, *self.root.parents) if path.is_dir())).free

    def set_aside(self) -> dict[str, int]:
        """What was set aside as damaged, and the bytes of each."""
        return {path.name: _size(path) for path in sorted(self.damaged.iterdir())} if self.damaged.is_dir() else {}

    def clear_set_aside(self) -> None:
        """Remove what was set aside as damaged."""
        shutil.rmtree(self.damaged, ignore_errors=True)

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact; nobody sees half of it meanwhile.

        Raises:
            UserError: it cannot be removed.
        """
        scratch = self.scratch("removed")
        try:
            self.path(kind, key).rename(scratch / key)
        except OSError as error:
            raise UserError(f"{self.path(kind, key)} cannot be removed ({error.strerror}); look at its owner") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Of a kind's artifacts those that come first by name, which is no order of theirs, as names are hashes."""
        for path in itertools.islice(sorted(self.path(kind, "").glob(f"*/{MANIFEST}")), most):
            with suppress(DamagedError):
                yield self.manifest(kind, path.parent.name)

    def put(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
        """Make an artifact: `build` fills a folder and returns the manifest; the artifact appears by one rename.

        If another process made the same one meanwhile, that one stays.

        Raises:
            UserError: the disk is full; what was begun is gone.
        """
        scratch = self.scratch(f"{kind}-{key[:12]}")
        try:
            with room(self.root):
                manifest = build(scratch)
                write_atomically(scratch / MANIFEST, _with_checksums(manifest, scratch))
                self._move_in(scratch, kind, key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _move_in(self, scratch: Path, kind: str, key: str) -> None:
        final = self.path(kind, key)
        final.parent.mkdir(exist_ok=True)
        if final.exists() and not self.has(kind, key):
            self._set_aside(kind, key)
        try:
            scratch.rename(final)
        except OSError:
            if not self.has(kind, key):
                raise

    def board(self) -> Board:
        """Where the drivers on this store tell each other what they are at."""
        from benchmark.leases import Folder

        return Folder(self.root / "leases")

    def scratch(self, name: str) -> Path:
        """A new empty folder for work in progress, marked with the process that owns it."""
        folder = self._unfinished / f"{os.getpid()}@{socket.gethostname()}@{name}-{uuid.uuid4().hex[:8]}"
        with room(self.root):
            folder.mkdir(parents=True)
        return folder

    def clear_leftovers(self) -> None:
        """Remove what processes of this machine that are gone have left: work, leases, checkpoints of what is done."""
        from benchmark.leases import holders

        clear_parts(self.root)
        holders(self.board())
        for checkpoints in self.root.glob("checkpoints/*/*"):
            if self.path(*checkpoints.parts[-2:]).exists():
                shutil.rmtree(checkpoints, ignore_errors=True)
        for folder in self._unfinished.iterdir():
            owner = re.fullmatch(r"(?P<pid>\d+)@(?P<host>.+?)@.*", folder.name)
            if owner and owner["host"] == socket.gethostname() and not alive(int(owner["pid"])):
                shutil.rmtree(folder, ignore_errors=True)


def _with_checksums(manifest: dict[str, Any], folder: Path) -> bytes:
    """A manifest as it is written: first the checksums of itself and of all files below the folder."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(str(path))}
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
    plain = json.loads(json.dumps(manifest, sort_keys=True))
    text = json.dumps({"checksums": {"manifest": "", "files": files}, **plain}, indent=1).encode() + b"\n"
    return _BEGIN + hashlib.sha256(text[len(_BEGIN) :]).hexdigest().encode() + text[len(_BEGIN) :]


def _problem(folder: str, every_byte: bool) -> str | None:
    """What is wrong with the artifact in a folder, in a few words; None where nothing is."""
    name = MANIFEST
    try:
        for name, known in _files(f"{folder}/{MANIFEST}").items():
            found = os.stat(f"{folder}/{name}")
            if not stat.S_ISREG(found.st_mode):
                return f"{name} is no file"
            if found.st_size != known["size"]:
                return f"{name} has {found.st_size} bytes, not {known['size']}"
            if every_byte and _sha256(f"{folder}/{name}") != known["sha256"]:
                return f"{name} has other content than was written"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{MANIFEST} is garbled"
    return None


def _checked(path: str) -> str | None:
    """The text of a manifest with checksums that is as it was written; None where it is of a time without them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is garbled.
    """
    with open(path, "rb") as file:
        raw = file.read()
    # No single flipped bit makes a manifest look like one from before there were checksums.
    if not raw.startswith(_BEGIN) and not raw.endswith(_END):
        if not isinstance(json.loads(raw), dict):
            raise ValueError(f"{path} holds no manifest")
        return None
    end = len(_BEGIN) + 64
    if raw[:end] != _BEGIN + hashlib.sha256(raw[end:]).hexdigest().encode():
        raise ValueError(f"{path} is not what was written")
    return raw.decode()


def _files(path: str) -> dict[str, Any]:
    """Size and SHA-256 of each file that a manifest names, which is not parsed any further; raises as `_checked`."""
    text = _checked(path)
    files: dict[str, Any] = _DECODER.raw_decode(text, text.index("{", 1))[0]["files"] if text else {}
    return files


def _sha256(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_format(mark: bytes, path: str, store: str) -> None:
    """Refuse a store of another version.

    Args:
        mark: content of its store.json.
        path: of that file.
        store: where it is.

    Raises:
        UserError: the format is newer than this version, or the file is damaged.
    """
    try:
        newer = json.loads(mark)["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path} is damaged; restore it as {{"format": {FORMAT}}} or choose another --store') from None
    if newer:
        raise UserError(
            f"store {store} has format {json.loads(mark)['format']}, and this version reads up to {FORMAT}; update "
            "sande-bench or choose another --store"
        )


def problem_in(folder: Path) -> str | None:
    """What is wrong with the artifact in a folder, byte for byte; None where nothing is."""
    return _problem(str(folder), every_byte=True)


def files_in(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of each file that the manifest in a folder names.

    Raises:
        OSError, ValueError or RecursionError: it cannot be read, or is garbled.
    """
    return _files(f"{folder}/{MANIFEST}")


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all, as `atomically` does."""
    with atomically(path) as file:
        file.write(text.encode() if isinstance(text, str) else text)


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file beside its place, at the end flushed to disk and renamed there, so that no reader sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.part")
    try:
        with room(path.parent):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def clear_parts(folder: Path) -> None:
    """Remove what processes of this machine left below a folder that were killed while they wrote a file."""
    for path in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):
        owner = re.fullmatch(r".*\.(?P<pid>\d+)@(?P<host>.+)\.part", path.name)
        if owner and owner["host"] == socket.gethostname() and not alive(int(owner["pid"])):
            path.unlink(missing_ok=True)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """A block that writes below a folder.

    Raises:
        FullError: the disk is full, or a quota is used up.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not full(error):
            raise
        raise FullError(
            f"no space is left for {folder}; free some, for which 'sande-bench store prune' may help, and run again"
        ) from None


def full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error).lower() for sign in _NO_SPACE)


def alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # One that has ended keeps its number until its parent asks for its end, which in a container perhaps nobody does.
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return True
