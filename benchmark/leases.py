"""Leases: several drivers on one store, on one machine or many, do every stage once.

STORE/leases/<kind>-<key>.<n>     the n-th holder of the lease on an artifact: who it is, and its last heartbeat

Before a driver starts a stage it takes the leases of what the stage makes, and a thread renews them. A lease is a file
that is created only if there is none of its name, which of several drivers one alone can do. Whoever sees that the
newest one has not changed for `SECONDS` takes the lease over by creating the next number. That time passes on the clock
of the one who waits, so no two clocks are compared. A holder on this machine whose process is gone is not waited for.

A lease saves work, and guards nothing: what two make all the same is put once, see `Store.put`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from benchmark.store import alive, write_atomically
from sande.errors import UserError

SECONDS = 60.0  # without a heartbeat, after which a lease may be taken over
BEATS = 6  # heartbeats in that time
POLL = 2.0  # seconds between looks at a lease that another holds
THIS_RUN, ANOTHER_RUN = "this run", "another run"


class Board(Protocol):
    """Where leases are; all drivers on a store see the same one."""

    def names(self) -> list[str]:
        """Of all leases."""

    def read(self, name: str) -> bytes | None:
        """Content of one; None where it is gone."""

    def create(self, name: str, content: bytes) -> bool:
        """Make one; False where there is one of that name."""

    def write(self, name: str, content: bytes) -> None:
        """Change one, whole or not at all."""

    def delete(self, name: str) -> None:
        """Remove one, if it is there."""


class Folder:
    """A board on a file system that all drivers share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Of all leases."""
        try:
            return [name for name in os.listdir(self._root) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """Content of one; None where it is gone."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Make one; False where there is one of that name."""
        self._root.mkdir(exist_ok=True)
        try:
            with (self._root / name).open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Change one, whole or not at all."""
        write_atomically(self._root / name, content)

    def delete(self, name: str) -> None:
        """Remove one, if it is there."""
        (self._root / name).unlink(missing_ok=True)


class Leases:
    """The leases that this driver holds, and its view of those of others.

    Attributes:
        seconds: without a heartbeat, after which it takes over what another holds.
    """

    def __init__(self, board: Board, say: Callable[[str], None], seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._board = board
        self._say = say
        self._me = {"process": os.getpid(), "machine": _machine(), "run": uuid.uuid4().hex}
        self._held: dict[str, tuple[int, str]] = {}  # number and for what, by artifact
        self._seen: dict[str, tuple[int, bytes, float]] = {}  # number, content, and since when, by artifact
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._beating: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles what it is given; a copy holds nothing."""
        return Leases, (self._board, self._say, self.seconds)

    def take(self, use: str, artifacts: Iterable[tuple[str, str]]) -> str | None:
        """Take the leases of some artifacts, all or none.

        Args:
            use: for what, such as a stage's key; what it holds already it may take again.
            artifacts: kinds and keys.

        Returns:
            Who holds one of them; None where they are this driver's now.
        """
        taken = []
        for name in sorted(f"{kind}-{key}" for kind, key in artifacts):
            if name in self._held:
                holder = None if self._held[name][1] == use else THIS_RUN
            else:
                holder = self._try(name, use)
                taken += [name] if holder is None else []
            if holder:
                self._release(taken)
                return holder
        return None

    def _try(self, name: str, use: str) -> str | None:
        """Take one: the next number, if there is no holder any more; gives the holder."""
        try:
            last = max(_numbers(self._board.names()).get(name, [0]))
            if last:
                content = self._board.read(f"{name}.{last}")
                if content is None or not self._is_gone(name, last, content):
                    return _holder(content or b"")
                told = f"taken over from {_holder(content)}, which has ended or fallen silent"
                self._say(f"{name[: name.index('-') + 9]}: {told}")
            mine = self._content(0)
            # One that is ours is there already, where the answer to a request was lost that was then made again.
            if not self._board.create(f"{name}.{last + 1}", mine) and self._board.read(f"{name}.{last + 1}") != mine:
                return ANOTHER_RUN
        except (OSError, UserError):  # where nothing can be written, the stage itself will say so
            return None
        with self._lock:
            self._held[name] = last + 1, use
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="leases", daemon=True)
            self._beating.start()
        return None

    def _is_gone(self, name: str, number: int, content: bytes) -> bool:
        """Whether the holder's process has ended on this machine, or it was silent for too long."""
        with suppress(ValueError, KeyError, TypeError):
            holder = json.loads(content)
            if holder["machine"] == self._me["machine"] and not alive(holder["process"]):
                return True
        now = time.monotonic()
        if self._seen.get(name, (0, b"", 0.0))[:2] != (number, content):
            self._seen[name] = number, content, now
        return now - self._seen[name][2] > self.seconds

    def release(self, use: str) -> None:
        """Give back what was taken for this use."""
        self._release([name for name, (_, of) in self._held.items() if of == use])

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            with self._lock:
                number, _ = self._held.pop(name, (0, ""))
            # Ours last, or the one before it would look like the holder's.
            with suppress(OSError, UserError):
                for other in sorted(n for n in _numbers(self._board.names()).get(name, []) if n <= number):
                    self._board.delete(f"{name}.{other}")

    def close(self) -> None:
        """Give back all of them."""
        self._end.set()
        if self._beating:
            self._beating.join()
        self._release(list(self._held))

    def _beat(self) -> None:
        beat = 0
        while not self._end.wait(self.seconds / BEATS):
            beat += 1
            with suppress(OSError, UserError), self._lock:
                numbers = _numbers(self._board.names())
                for name, (number, _) in list(self._held.items()):
                    if max(numbers.get(name, [number])) > number:  # taken over while this machine slept
                        del self._held[name]
                    else:
                        self._board.write(f"{name}.{number}", self._content(beat))

    def _content(self, beat: int) -> bytes:
        return json.dumps(self._me | {"beat": beat}).encode()


def holders(board: Board) -> list[str]:
    """Who holds leases, those aside whose process has ended on this machine, which are removed."""
    found = set()
    for name, numbers in _numbers(board.names()).items():
        content = board.read(f"{name}.{max(numbers)}") or b""
        if Leases(board, print, seconds=float("inf"))._is_gone(name, max(numbers), content):
            for number in sorted(numbers):
                board.delete(f"{name}.{number}")
        else:
            found.add(_holder(content))
    return sorted(found)


def _numbers(names: Iterable[str]) -> dict[str, list[int]]:
    """By artifact the numbers of its leases."""
    found: dict[str, list[int]] = {}
    for name in names:
        artifact, _, number = name.rpartition(".")
        if number.isdecimal():
            found.setdefault(artifact, []).append(int(number))
    return found


def _holder(content: bytes) -> str:
    try:
        holder: dict[str, Any] = json.loads(content)
        return f"process {holder['process']} on {holder['machine'].split('/')[0]}"
    except (ValueError, KeyError, TypeError, AttributeError):  # just being written
        return ANOTHER_RUN


def _machine() -> str:
    """This machine, and where it has several sets of process ids (containers), which of them."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()
