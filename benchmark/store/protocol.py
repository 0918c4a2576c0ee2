"""The interface of a store, local (`benchmark.store.local`) or remote (`benchmark.store.remote`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from benchmark.store.checkpoints import Kept
from benchmark.store.leases import LeaseBackend


class Store(Protocol):
    """Artifacts by kind and key. Work in progress and converted models are in a folder of this machine.

    Attributes:
        location: path or URI, for messages and for `benchmark.store.remote.open_store`.
        root: folder on this machine: the store itself, or the local copy of a remote one.
        models: folder of models that are made or converted once.
        tracking: folder of the losses of trainings, for TensorBoard.
    """

    location: str
    root: Path
    models: Path
    tracking: Path

    @property
    def exists(self) -> bool:
        """Return whether there is a store."""

    def check_there(self) -> None:
        """Refuse to go on with a store that was removed.

        Raises:
            UserError: it was.
        """

    def check_writable(self) -> None:
        """Write into the store, so that a refusal does not come after hours of work.

        Raises:
            UserError: it is gone, or cannot be written.
        """

    def path(self, kind: str, key: str) -> Path:
        """Return the local folder of an artifact, which need not exist."""

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artifact is there and, as far as planning looks, undamaged."""

    def complete(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Return the keys of those artifacts that `has` finds."""

    def problem(self, kind: str, key: str, every_byte: bool = False) -> str | None:
        """Return in a few words what is wrong with an artifact; None where nothing is.

        It is `errors.UNFINISHED` for an artifact that another run may be sending to a remote store.

        Args:
            kind: of the artifact.
            key: of the artifact.
            every_byte: compare files of a model by content too, not by size alone.

        Raises:
            UnreadableError: this user may not read it.
        """

    def read(self, kind: str, key: str) -> Path:
        """Return a local folder of an artifact whose files are byte for byte as its stage left them.

        Raises:
            DamagedError: they are not, and the artifact was quarantined; or another run dropped it or is sending it.
            UnreadableError: this user may not read them; nothing is moved.
        """

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        """Return what the stage of an artifact recorded.

        Raises:
            DamagedError: it is missing or garbled.
            UnreadableError: this user may not read it.
        """

    def manifests(self, kind: str, most: int = 2000) -> Iterator[dict[str, Any]]:
        """Yield at most `most` manifests of a kind, the first by key: a random choice, since keys are hashes."""

    def keys(self, kind: str) -> list[str]:
        """Return the keys of a kind's artifacts, damaged ones too, in order."""

    def size(self, kind: str, key: str) -> int:
        """Return the bytes of an artifact's files; 0 where it is not there."""

    def free(self) -> int | None:
        """Return the bytes that are free; None where that is not known."""

    def put(self, kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
        """Make an artifact: `build` fills a folder and returns the manifest. No reader sees half of an artifact.

        Where another process made the same one meanwhile, that one stays.

        Raises:
            UserError: the disk is full, or the store cannot be written.
        """

    def remove(self, kind: str, key: str) -> None:
        """Remove an artifact; no reader sees half of it meanwhile.

        Raises:
            UserError: it cannot be removed.
        """

    def quarantine(self, kind: str, key: str, problem: str) -> str:
        """Move a damaged artifact into quarantine, and return a clause that reports it."""

    def quarantine_damaged(self, artifacts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Quarantine those of some artifacts (kinds and keys) that are damaged; yield one message each.

        Unfinished ones stay where they are.
        """

    def quarantined(self) -> dict[str, int]:
        """Return the bytes of each quarantined artifact by name."""

    def clear_quarantine(self) -> None:
        """Remove all quarantined artifacts."""

    def checkpoints(self, kind: str, key: str, say: Callable[[str], None]) -> Kept:
        """Return the checkpoints of the stage that makes an artifact; `say` receives a line about what fails."""

    def lease_backend(self) -> LeaseBackend:
        """Return where the drivers on this store keep their leases."""

    def scratch(self, name: str) -> Path:
        """Make a new empty local folder for work in progress, marked with the process that owns it."""

    def clear_leftovers(self) -> None:
        """Remove what ended processes left: work, leases, and checkpoints of finished stages."""
