"""Leases: several drivers on one store, on one machine or many, run every stage once.

STORE/leases/<kind>-<key>.<n>     the n-th holder of the lease on an artifact: its process, and its last heartbeat

Before a driver starts a stage it acquires the leases of what the stage makes, and a thread renews them. A lease is a
file that is created only where no file has its name, so one of several drivers succeeds. A driver that sees no change
of the newest file for `SECONDS` takes the lease over by creating the next number. It measures that time on its own
clock, so no two clocks are compared. It does not wait for a holder on this machine whose process has ended; what makes
a machine and a process is in `benchmark.io.owners`.

A bucket answers slowly, and a driver may hold hundreds of leases. So the thread writes several heartbeats at once, the
driver releases several leases at once, and it waits for no heartbeats but those of the leases that it releases.

A lease saves work and protects nothing: an artifact that two drivers make all the same is put once, see `Store.put`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from benchmark.io import owners
from benchmark.io.files import write_atomically
from benchmark.io.remote import AT_ONCE
from sande import bounds
from sande.errors import UserError
from sande.permissions import share, share_new_folder

SECONDS = 60.0  # without a heartbeat, after which another driver may take a lease over
BEATS = 6  # heartbeats in that time
POLL = 2.0  # seconds between two checks of a lease that another driver holds
_LARGEST = 64 * 1024  # bytes of a lease; ours have about 200
_NUMBERED = re.compile(r"(?P<artifact>.+)\.(?P<number>[1-9][0-9]{0,8})", re.ASCII | re.DOTALL)
THIS_RUN, ANOTHER_RUN = "this run", "another run"


class LeaseBackend(Protocol):
    """Files of leases by name; all drivers on a store see the same ones."""

    def names(self) -> list[str]:
        """Return the names of all leases."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a lease; None where there is none of that name."""

    def create(self, name: str, content: bytes) -> bool:
        """Create a lease and return True; return False where there is one of that name."""

    def write(self, name: str, content: bytes) -> None:
        """Replace the content of a lease, whole or not at all."""

    def delete(self, name: str) -> None:
        """Remove a lease, if it is there."""


class FileLeases:
    """Leases in a folder that all drivers share, and which has the permissions of the folder around it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Return the names of all leases.

        Raises:
            UserError: the folder cannot be read, or is a file.
        """
        try:
            return [name for name in os.listdir(self._root) if not name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self._root} cannot be read ({error.strerror}); check its owner, or remove it") from None

    def read(self, name: str) -> bytes | None:
        """Return the content of a lease, or the time of its last change where it is not a readable file; None: none."""
        try:
            try:
                return bounds.read(self._root / name, _LARGEST)
            except (OSError, UserError):
                return str((self._root / name).lstat().st_mtime_ns).encode()  # each heartbeat changes that, too
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Create a lease and return True; return False where there is one of that name."""
        share_new_folder(self._root)
        try:
            with (self._root / name).open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        share(self._root / name, self._root)
        return True

    def write(self, name: str, content: bytes) -> None:
        """Replace the content of a lease, whole or not at all."""
        write_atomically(self._root / name, content)
        share(self._root / name, self._root)

    def delete(self, name: str) -> None:
        """Remove a lease, or an empty folder in its place, if it is there."""
        path = self._root / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)  # compared by identity: one that is acquired again is another lease
class _Lease:
    """A lease that this driver holds.

    Attributes:
        number: of its file.
        use: what it is held for.
        changing: held while its file is written or deleted, so that no heartbeat brings a released lease back.
    """

    number: int
    use: str
    changing: threading.Lock = field(default_factory=threading.Lock)


class _Heartbeats:
    """The heartbeats of other drivers, on the clock of this process."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, bytes, float]] = {}  # number, content, and since when, by artifact

    def are_gone(self, name: str, number: int, content: bytes, seconds: float) -> bool:
        """Return whether a holder's process has ended on this machine, or its heartbeat has stopped for too long."""
        if _has_ended(content):
            return True
        now = time.monotonic()
        if self._seen.get(name, (0, b"", 0.0))[:2] != (number, content):
            self._seen[name] = number, content, now
        return now - self._seen[name][2] > seconds


class Leases:
    """The leases that this driver holds, and its view of those of others.

    Attributes:
        seconds: without a heartbeat, after which it takes over the lease of another driver.
    """

    def __init__(self, backend: LeaseBackend, say: Callable[[str], None], seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._backend = backend
        self._say = say
        me = owners.me()
        self._me: dict[str, Any] = {"process": me.process, "started": me.started, "run": uuid.uuid4().hex}
        self._me["machine"] = f"{socket.gethostname()}/{me.machine}"  # the name is for messages
        self._held: dict[str, _Lease] = {}  # by artifact
        self._heartbeats = _Heartbeats()
        self._lock = threading.Lock()  # of `_held`; never held during a request
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make a copy, which holds no lease; Tune pickles its arguments."""
        return Leases, (self._backend, self._say, self.seconds)

    def acquire(self, use: str, artifacts: Iterable[tuple[str, str]]) -> str | None:
        """Acquire the leases of some artifacts, all or none.

        Args:
            use: their purpose, such as a stage's key; leases that are held for it may be acquired again.
            artifacts: kinds and keys.

        Returns:
            The holder of one of them; None where this driver holds them all now.
        """
        taken = []
        for name in sorted(f"{kind}-{key}" for kind, key in artifacts):
            if lease := self._held.get(name):
                holder = None if lease.use == use else THIS_RUN
            else:
                holder = self._try(name, use)
                taken += [name] if holder is None else []
            if holder:
                self._release(taken)
                return holder
        return None

    def _try(self, name: str, use: str) -> str | None:
        """Acquire one by creating the next number, if it has no live holder; return the holder, if it has."""
        try:
            last = max(_numbers(self._backend.names()).get(name, [0]))
            if last:
                content = self._backend.read(f"{name}.{last}")
                if content is None or not self._heartbeats.are_gone(name, last, content, self.seconds):
                    return _holder(content or b"")
                reason = f"taken over from {_holder(content)}, which has ended or sends no heartbeat"
                self._say(f"{name[: name.index('-') + 9]}: {reason}")
            mine = self._content(0)
            # Our own file may be there already: the answer to a request was lost, and the request repeated.
            number = f"{name}.{last + 1}"
            if not self._backend.create(number, mine) and self._backend.read(number) != mine:
                return ANOTHER_RUN
        except (OSError, UserError):  # where nothing can be written, the stage itself reports it
            return None
        with self._lock:
            self._held[name] = _Lease(last + 1, use)
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._beating.start()
        return None

    def release(self, use: str) -> None:
        """Release the leases that are held for this use."""
        with self._lock:
            names = [name for name, lease in self._held.items() if lease.use == use]
        self._release(names)

    def _release(self, names: Iterable[str]) -> None:
        """Release those of some leases that are still held; others were taken over."""
        with self._lock:
            released = {name: self._held.pop(name) for name in names if name in self._held}
        if not released:
            return
        numbers: dict[str, list[int]] = {}
        with suppress(OSError, UserError):
            numbers = _numbers(self._backend.names())

        def drop(name: str, lease: _Lease) -> None:
            with lease.changing:
                # Delete our own file last, or the one before it would look like the holder's.
                older = {number for number in numbers.get(name, []) if number < lease.number}
                _delete(self._backend, name, {*older, lease.number})

        # Where no thread can be started, the leases end as those of a silent driver do.
        with suppress(RuntimeError), ThreadPoolExecutor(AT_ONCE, "leases") as pool:
            list(pool.map(drop, released.keys(), released.values()))

    def close(self) -> None:
        """Release all leases and stop their renewal."""
        self._end.set()
        if self._beating:
            self._beating.join()
        self._release(list(self._held))

    def _beat(self) -> None:
        beat = 0
        while not self._end.wait(self.seconds / BEATS):
            beat += 1
            # The next round tries again what fails, such as the start of a thread, which is a RuntimeError.
            with suppress(OSError, UserError, RuntimeError):
                self._renew(self._content(beat))

    def _renew(self, content: bytes) -> None:
        """Write a heartbeat of all leases, and forget those that another driver took over.

        Args:
            content: the heartbeat.

        Raises:
            OSError, UserError: the leases cannot be listed.
            RuntimeError: no thread can be started.
        """
        with self._lock:
            held = dict(self._held)
        numbers = _numbers(self._backend.names())
        for name, lease in list(held.items()):
            if max(numbers.get(name, [lease.number])) > lease.number:  # taken over while this machine slept
                self._forget(name, held.pop(name))
        with ThreadPoolExecutor(AT_ONCE, "leases") as pool:
            list(pool.map(self._write, held.keys(), held.values(), repeat(content)))  # a list raises their errors

    def _forget(self, name: str, lease: _Lease) -> None:
        with self._lock:
            if self._held.get(name) is lease:
                del self._held[name]

    def _write(self, name: str, lease: _Lease, content: bytes) -> None:
        """Write a lease's heartbeat, unless it was released since the round began; leave one that cannot be written."""
        with lease.changing, suppress(OSError, UserError):
            if self._held.get(name) is lease:
                self._backend.write(f"{name}.{lease.number}", content)

    def _content(self, beat: int) -> bytes:
        return json.dumps(self._me | {"beat": beat}).encode()


class OtherRuns:
    """The view that this process has of other runs at work on a store, by their leases."""

    def __init__(self, backend: LeaseBackend, seconds: float = SECONDS) -> None:
        """Take where the leases are, and the seconds without a heartbeat after which a run counts as dead."""
        self._backend, self._seconds = backend, seconds
        self._heartbeats = _Heartbeats()

    def at_work(self) -> bool:
        """Return whether another process holds a lease; True where that cannot be seen.

        Remove leases of no artifact whose holders are gone: each has a name of its own, so nobody takes it over.
        """
        try:
            last = {name: max(numbers) for name, numbers in _numbers(self._backend.names()).items()}
            with ThreadPoolExecutor(AT_ONCE, "leases") as pool:
                contents = list(pool.map(self._backend.read, (f"{name}.{number}" for name, number in last.items())))
        except (OSError, UserError, RuntimeError):  # the last one where no thread can be started
            return True
        live, me = False, owners.me()
        for (name, number), content in zip(last.items(), contents, strict=True):
            if content is None or _owner(content) == me:
                continue
            if not self._heartbeats.are_gone(name, number, content, self._seconds):
                live = True  # and look on, since every heartbeat is to be noted
            elif name.startswith("run-"):
                _delete(self._backend, name, [number])
        return live


@contextmanager
def at_work(backend: LeaseBackend, say: Callable[[str], None]) -> Iterator[OtherRuns]:
    """Hold a lease of no artifact, so that other runs see that this one is at work; yield them after a first look."""
    others = OtherRuns(backend)
    others.at_work()
    with closing(Leases(backend, say)) as leases:
        leases.acquire("run", [("run", uuid.uuid4().hex)])
        yield others
        others.at_work()


def held(backend: LeaseBackend) -> set[str]:
    """Return the artifacts that have leases, each as <kind>-<key>.

    Raises:
        UserError: the leases cannot be listed.
    """
    return set(_numbers(backend.names()))


def holders(backend: LeaseBackend) -> list[str]:
    """Return the live holders of leases; remove the leases of processes of this machine that have ended.

    Raises:
        UserError: the leases cannot be listed.
    """
    found = set()
    for name, numbers in _numbers(backend.names()).items():
        content = backend.read(f"{name}.{max(numbers)}") or b""
        if _has_ended(content):
            _delete(backend, name, numbers)
        else:
            found.add(_holder(content))
    return sorted(found)


def _delete(backend: LeaseBackend, name: str, numbers: Iterable[int]) -> None:
    """Remove an artifact's leases of these numbers, the last one last; leave what cannot be removed."""
    for number in sorted(numbers):
        with suppress(OSError, UserError):
            backend.delete(f"{name}.{number}")


def _numbers(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the numbers of each artifact's leases; names that no lease has are left out."""
    found: dict[str, list[int]] = {}
    for name in names:
        if lease := _NUMBERED.fullmatch(name):
            found.setdefault(lease["artifact"], []).append(int(lease["number"]))
    return found


def _has_ended(content: bytes) -> bool:
    """Return whether the holder in a lease's content is a process of this machine that no longer runs."""
    holder = _owner(content)
    return holder is not None and holder.has_ended


def _owner(content: bytes) -> owners.Owner | None:
    """Return the process that holds a lease, by its content; None where that is being written, or is no lease's."""
    try:
        holder = json.loads(content)
        return owners.Owner(holder["process"], holder["started"], holder["machine"].rpartition("/")[2])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _holder(content: bytes) -> str:
    try:
        holder: dict[str, Any] = json.loads(content)
        return f"process {holder['process']} on {holder['machine'].split('/')[0]}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it is being written
        return ANOTHER_RUN
