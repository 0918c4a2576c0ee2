"""`sande-bench store`: what is in a store, whether it is undamaged, and what no grid needs any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import disk, leases
from benchmark import grid as grids
from benchmark import plan as plans
from benchmark import search as searches
from benchmark.keeping import DROPPED
from benchmark.remote_store import open_store
from benchmark.store import MODELS, DamagedError, Store
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.grid import Grid

KINDS = (*MODELS, DROPPED, "evaluate", "search")
CHECKPOINTS = "checkpoints/"  # of stages that were ended in the middle, by kind and key like what they would have made
COLUMNS = ("kind", "key", "size", "model", "what", "made")


@dataclass(frozen=True, slots=True)
class Removal:
    """What may go.

    Attributes:
        artifacts: kinds and keys of those that no listed grid needs, and of checkpoints.
        size: bytes of each.
        aside: bytes of what was set aside as damaged.
    """

    artifacts: tuple[tuple[str, str], ...]
    size: tuple[int, ...]
    aside: int

    @property
    def total(self) -> int:
        """Bytes that it frees."""
        return sum(self.size) + self.aside


def opened(place: str) -> Store:
    """A store that is there.

    Raises:
        UserError: it is not, or as for `Store`.
    """
    store = open_store(place, create=False)
    if not store.exists:
        raise UserError(f"{place} is no store; give the --store of a run")
    return store


def listing(store: Store) -> tuple[dict[str, list[str]], list[str]]:
    """Return the artifacts as columns of a table by head, and lines with the sums."""
    rows, sizes, counts = [], Counter[str](), Counter[str]()
    for kind, key in artifacts(store):
        size = store.size(kind, key)
        sizes[kind] += size
        counts[kind] += 1
        try:
            manifest = store.manifest(kind, key)
            about = manifest["settings"]["model"], _what(kind, manifest), _made(manifest)
        except (DamagedError, KeyError, TypeError):
            about = ("", "damaged" if store.problem(kind, key) else "", "")
        rows.append((kind, key[:12], disk.told(size), *about))
    columns = {head: [row[number] for row in rows] for number, head in enumerate(COLUMNS)}
    each = ", ".join(f"{counts[kind]} {kind} {disk.told(sizes[kind])}" for kind in KINDS if counts[kind])
    total = f"{sum(counts.values())} artifacts, {disk.told(sum(sizes.values()))}"
    lines = [f"{store.location}: {total}{f' ({each})' if each else ''}"]
    if aside := store.set_aside():
        bytes_ = disk.told(sum(aside.values()))
        lines.append(f"Set aside as damaged: {len(aside)}, {bytes_}; 'sande-bench store prune' clears them")
    return columns, lines


def _what(kind: str, manifest: dict[str, Any]) -> str:
    if kind == "evaluate":
        return ", ".join(measured["name"] for measured in manifest["measurements"])
    return str(manifest["settings"]["attack" if manifest.get("kind", kind) == "attack" else "defense"]["name"])


def _made(manifest: dict[str, Any]) -> str:
    return str(manifest.get("started_at") or manifest["ended_at"])


def artifacts(store: Store) -> Iterator[tuple[str, str]]:
    """Kind and key of everything that is or was an artifact."""
    for kind in KINDS:
        for key in store.keys(kind):
            yield kind, key


def verify(store: Store) -> Iterator[str]:
    """Read every artifact whole; damaged ones are set aside, and a line tells of each."""
    for kind, key in artifacts(store):
        if problem := store.problem(kind, key, every_byte=True):
            yield store.set_aside_as(kind, key, problem)


def needed(loaded: Grid, store: Store) -> set[tuple[str, str]]:
    """Kinds and keys of all that a grid's cells read, made or would make, searches and victims among them."""
    every = {*loaded.cells, *searches.settled(loaded, store).cells}
    found: set[tuple[str, str]] = {
        (stage.kind, key)
        for cell in every
        for each in (plans.victim_of(cell), cell)
        for stage in plans.stages_of(each)
        for key in stage.artifacts
    }
    found |= {(DROPPED, key) for kind, key in found if kind in MODELS}
    if loaded.search:
        found |= {("search", job.key) for cell in loaded.cells if (job := searches.job_of(loaded.search, cell))}
    return found


def removable(paths: Iterable[Path], scales: Iterable[str], store: Store) -> Removal:
    """What none of some grids needs.

    Args:
        paths: grid files, or names of those in `grids/`.
        scales: at which the grids are needed beside their own.
        store: where to look.

    Raises:
        UserError: a grid cannot be read; then nothing may go.
    """
    keep: set[tuple[str, str]] = set()
    for path in paths:
        for scale in (None, *scales):
            keep |= needed(grids.load(path, scale=scale), store)
    begun = ((f"{CHECKPOINTS}{kind}", key) for kind in MODELS for key in store.keys(f"{CHECKPOINTS}{kind}"))
    found = tuple(
        (kind, key) for kind, key in (*artifacts(store), *begun) if (kind.removeprefix(CHECKPOINTS), key) not in keep
    )
    return Removal(found, tuple(store.size(*artifact) for artifact in found), sum(store.set_aside().values()))


def remove(removal: Removal, store: Store) -> None:
    """Remove it, and what was set aside.

    Raises:
        UserError: a run is at work, which may need it.
    """
    if working := leases.holders(store.board()):
        raise UserError(
            f"{', '.join(working)} is at work on this store; prune when it has ended, or, if it is dead, remove "
            f"{store.location}/leases"
        )
    for kind, key in removal.artifacts:
        store.remove(kind, key)
    store.clear_set_aside()


def told(removal: Removal) -> Iterator[str]:
    """What would go, by kind, and how much that is."""
    for kind in (*KINDS, *(f"{CHECKPOINTS}{kind}" for kind in MODELS)):
        sizes = [size for (of, _), size in zip(removal.artifacts, removal.size, strict=True) if of == kind]
        if sizes:
            yield f"{len(sizes)} {kind}: {disk.told(sum(sizes))}"
    if removal.aside:
        yield f"set aside as damaged: {disk.told(removal.aside)}"
