"""List a store, verify it, and prune artifacts that no grid needs: `sande-bench store`."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmark.grid import space
from benchmark.grid.load import load_grid
from benchmark.io import units
from benchmark.plan import plan, searches
from benchmark.store import leases
from benchmark.store.errors import UNFINISHED, DamagedError, UnreadableError
from benchmark.store.local import DROPPED, MODELS
from benchmark.store.protocol import Store
from benchmark.store.remote import open_store
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.grid.load import Grid


KINDS = (*MODELS, DROPPED, "evaluate", "search")
CHECKPOINTS = "checkpoints/"  # of interrupted stages, by kind and key of the artifact that they would have made
COLUMNS = ("kind", "key", "size", "model", "what", "made (UTC)")


class Finding(NamedTuple):
    """One artifact that `verify` does not find in order.

    Attributes:
        state: damaged, and quarantined now; unreadable for this user; unfinished, as another run may be sending it; or
            removed by another run since the artifacts were listed.
        line: message about it.
    """

    state: Literal["damaged", "unreadable", "unfinished", "removed"]
    line: str


@dataclass(frozen=True, slots=True)
class Removal:
    """Artifacts that may be removed.

    Attributes:
        artifacts: kinds and keys of artifacts and checkpoints that no listed grid needs.
        size: bytes of each.
        quarantined: bytes of quarantined artifacts.
    """

    artifacts: tuple[tuple[str, str], ...]
    size: tuple[int, ...]
    quarantined: int

    @property
    def total(self) -> int:
        """Return the bytes that a removal frees."""
        return sum(self.size) + self.quarantined


def opened(place: str) -> Store:
    """Return an existing store.

    Raises:
        UserError: there is none, or as for `open_store`.
    """
    store = open_store(place, create=False)
    if not store.exists:
        raise UserError(f"{place} is not a store; use the --store of a run")
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
            about = str(manifest["settings"]["model"]), _what(kind, manifest), _made(manifest)
        except UnreadableError:
            about = ("", "may not be read", "")
        except (DamagedError, KeyError, TypeError, AttributeError):  # of an earlier version
            problem = store.problem(kind, key)
            about = ("", "unfinished" if problem == UNFINISHED else "damaged" if problem else "", "")
        rows.append((kind, key[:12], units.format_bytes(size), *about))
    columns = {head: [row[number] for row in rows] for number, head in enumerate(COLUMNS)}
    each = ", ".join(f"{counts[kind]} {kind} {units.format_bytes(sizes[kind])}" for kind in KINDS if counts[kind])
    total = f"{units.counted(sum(counts.values()), 'artifact')}, {units.format_bytes(sum(sizes.values()))}"
    lines = [f"{store.location}: {total}{f' ({each})' if each else ''}"]
    if damaged := store.quarantined():
        bytes_ = units.format_bytes(sum(damaged.values()))
        lines.append(f"Quarantined as damaged: {len(damaged)}, {bytes_}; 'sande-bench store prune' removes them")
    return columns, lines


def _what(kind: str, manifest: dict[str, Any]) -> str:
    if kind == "evaluate":
        return ", ".join(measured["name"] for measured in manifest["measurements"])
    method = manifest["settings"]["attack" if manifest.get("kind", kind) == "attack" else "defense"]["name"]
    return f"{method} {manifest['part']}" if "part" in manifest else str(method)


def _made(manifest: dict[str, Any]) -> str:
    """Return when an artifact was made, to the minute, in UTC as manifests have it."""
    text = str(manifest.get("started_at") or manifest["ended_at"])
    try:
        return f"{datetime.datetime.fromisoformat(text).astimezone(datetime.UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):  # of an earlier version, or edited
        return text


def artifacts(store: Store) -> Iterator[tuple[str, str]]:
    """Yield kind and key of every artifact, and of every dropped model."""
    for kind in KINDS:
        for key in store.keys(kind):
            yield kind, key


def verify(store: Store, listed: Iterable[tuple[str, str]] | None = None) -> Iterator[Finding]:
    """Read every byte of artifacts; quarantine damaged ones; yield those that are not in order.

    Args:
        store: holds them.
        listed: kinds and keys; None: all.
    """
    for kind, key in artifacts(store) if listed is None else listed:
        try:
            problem = store.problem(kind, key, every_byte=True)
            if problem == UNFINISHED:
                line = f"{kind} {key[:8]} in the store: {UNFINISHED}; the next run that needs it finishes it"
                yield Finding("unfinished", line)
            elif problem and key not in store.keys(kind):
                yield Finding("removed", f"{kind} {key[:8]} was removed by another run meanwhile")
            elif problem:
                yield Finding("damaged", store.quarantine(kind, key, problem))
        except UnreadableError as error:
            yield Finding("unreadable", str(error))


def needed(loaded: Grid, store: Store) -> set[tuple[str, str]]:
    """Return kinds and keys of all artifacts that a grid's cells read or make, with their searches and victims."""
    every = {*loaded.cells, *searches.settled(loaded, store).cells}
    found: set[tuple[str, str]] = {
        (stage.kind, key)
        for cell in every
        for each in (plan.victim_of(cell), cell)
        for stage in plan.stages_of(each)
        for key in stage.artifacts
    }
    found |= {(DROPPED, key) for kind, key in found if kind in MODELS}
    if loaded.search:
        found |= {("search", job.key) for cell in loaded.cells if (job := space.job_of(loaded.search, cell))}
    return found


def removable(paths: Iterable[Path], scales: Iterable[str], store: Store) -> Removal:
    """Return the artifacts that no listed grid needs.

    Args:
        paths: grid files, or names of grids in `grids/`.
        scales: scales at which the grids are needed, besides their own.
        store: store to prune.

    Raises:
        UserError: a grid cannot be read; then nothing may be removed.
    """
    keep: set[tuple[str, str]] = set()
    for path in paths:
        for scale in (None, *scales):
            keep |= needed(load_grid(path, scale=scale), store)
    begun = ((f"{CHECKPOINTS}{kind}", key) for kind in MODELS for key in store.keys(f"{CHECKPOINTS}{kind}"))
    found = tuple(
        (kind, key) for kind, key in (*artifacts(store), *begun) if (kind.removeprefix(CHECKPOINTS), key) not in keep
    )
    return Removal(found, tuple(store.size(*artifact) for artifact in found), sum(store.quarantined().values()))


def remove(removal: Removal, store: Store) -> None:
    """Remove artifacts, and all quarantined ones.

    Raises:
        UserError: a run, which may need them, is at work.
    """
    if working := leases.holders(store.lease_backend()):
        raise UserError(
            f"{', '.join(working)} is at work on this store; prune when it has ended, or, if it is dead, remove "
            f"{store.location}/leases"
        )
    for kind, key in removal.artifacts:
        store.remove(kind, key)
    store.clear_quarantine()


def told(removal: Removal) -> Iterator[str]:
    """Yield by kind the number and bytes of the artifacts that may be removed."""
    for kind in (*KINDS, *(f"{CHECKPOINTS}{kind}" for kind in MODELS)):
        sizes = [size for (of, _), size in zip(removal.artifacts, removal.size, strict=True) if of == kind]
        if sizes:
            yield f"{len(sizes)} {kind}: {units.format_bytes(sum(sizes))}"
    if removal.quarantined:
        yield f"quarantined as damaged: {units.format_bytes(removal.quarantined)}"
