"""Owners: the process to which a half-written file, work in progress or a lease belongs, and whether it has ended.

Containers share host names, and each counts its processes from one. So a process is known by three things: its number,
the time at which it started, and its machine, which here is one boot of a kernel and one namespace of process numbers.
A process of another machine cannot be looked for: only the silence of its files shows that it has ended.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import stat
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SILENT = 86_400.0  # seconds without a change, after which what another machine's process left may be removed
RENEWED = 600.0  # seconds between two renewals of work in progress
_LARGEST = 2**31 - 1  # process number
_TOKEN = re.compile(r"(?P<process>[1-9][0-9]{0,9})-(?P<started>[0-9]{1,20})@(?P<machine>[0-9a-f]{16})", re.ASCII)
# How earlier versions wrote it: by the name of the host, which containers share.
_EARLIER = re.compile(r"(?P<process>[0-9]{1,10})@(?P<host>[^@]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Owner:
    """One process.

    Attributes:
        process: its number.
        started: clock ticks from the boot to its start; 0 where that is not known.
        machine: boot and namespace as a hash.
        certain: whether the machine is known by more than the name of its host.
    """

    process: int
    started: int
    machine: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.process}-{self.started}@{self.machine}"

    @property
    def has_ended(self) -> bool:
        """Return whether it is known that the process no longer runs; False for a process of another machine."""
        return self.machine == machine() and not alive(self.process, self.started)


def me() -> Owner:
    """Return this process."""
    return Owner(os.getpid(), _start_of(os.getpid()) or 0, machine())


def parse(text: str) -> Owner | None:
    """Return the owner that a text names, also as earlier versions wrote it; None where it names none."""
    if found := _TOKEN.fullmatch(text):
        return Owner(int(found["process"]), int(found["started"]), found["machine"])
    if found := _EARLIER.fullmatch(text):
        here = found["host"] == socket.gethostname()
        return Owner(int(found["process"]), 0, machine() if here else found["host"], certain=False)
    return None


def is_left(path: Path, owner: Owner) -> bool:
    """Return whether a file or folder is what an ended process left.

    A process of this machine has ended if it no longer runs. Where that cannot be seen, what it made must not have
    changed for a day by the clock of the file system.
    """
    if owner.machine == machine():
        return owner.has_ended and (owner.certain or _is_silent(path))
    return _is_silent(path)


def _is_silent(path: Path) -> bool:
    """Return whether nothing in a file or folder has changed for `SILENT` seconds, by the clock of the file system."""
    now = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.now")
    try:
        times = [path.lstat().st_mtime, *(each.lstat().st_mtime for each in path.rglob("*"))]
        if time.time() - max(times) < SILENT / 2:  # no clock is wrong by so much, so no file need be made
            return False
        now.touch()
        return now.stat().st_mtime - max(times) > SILENT
    except OSError:
        return False
    finally:
        with suppress(OSError):
            now.unlink(missing_ok=True)


def alive(process: object, started: object = 0) -> bool:
    """Return whether a process of this machine is running; True for what is not the number of a process.

    Args:
        process: its number.
        started: when it did, as in `Owner`; a process of the same number that started later is another one.
    """
    if type(process) is not int or not 0 < process <= _LARGEST:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    fields = _fields(process)
    # A process that has ended keeps its number until its parent reaps it, which may never happen in a container.
    return not fields or (fields[0] != b"Z" and started in (0, int(fields[19])))


def _start_of(process: int) -> int | None:
    fields = _fields(process)
    return int(fields[19]) if fields else None


def _fields(process: int) -> list[bytes]:
    """Return the fields of /proc/N/stat from the state on; none where the system has or shows no such file."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return fields if len(fields) > 19 and fields[19].isdigit() else []
    return []


@functools.cache
def machine() -> str:
    """Return a hash of this boot of the kernel and of the namespace of process numbers.

    A system without `/proc` is known by its network card and the name of its host. A Linux that hides its boot may be a
    container like many others: then no process but this one is known to be of this machine.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        known = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        known = uuid.uuid4().hex if sys.platform == "linux" else f"{socket.gethostname()} {uuid.getnode():x}"
    return hashlib.sha256(known.encode(errors="replace")).hexdigest()[:16]


class _Renewal:
    """Renew the time of folders while this process lives, so that no other machine takes them for left."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()
        self._process = 0  # whose thread it is; a fork has none
        self._lock = threading.Lock()

    def add(self, folder: Path) -> None:
        """Renew a folder until it is removed."""
        with self._lock:
            self._folders.add(folder)
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._renew, name="renewal", daemon=True).start()

    def _renew(self) -> None:
        while True:
            time.sleep(RENEWED)
            with self._lock:
                folders = set(self._folders)
            for folder in folders:
                try:
                    if stat.S_ISDIR(folder.lstat().st_mode):
                        os.utime(folder)
                        continue
                except FileNotFoundError:
                    pass
                except OSError:
                    continue
                with self._lock:
                    self._folders.discard(folder)


_renewal = _Renewal()


def renew(folder: Path) -> None:
    """Renew the time of a folder of this process until the folder is removed."""
    _renewal.add(folder)
