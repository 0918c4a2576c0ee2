"""Retention of models. A dropped model leaves its manifest, from which rows are made.

STORE/dropped/<key>/manifest.json     manifest of a victim, a part or a defended model whose weights are removed

A dropped model counts as done while no missing stage reads it. A new metric recomputes the model, and its victim where
that was dropped too. Parts of a defense are always dropped once the defense is done.

While another run is at work on the store, nothing is dropped: it may have planned on any model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from benchmark.grid.resources import Kind
from benchmark.store.errors import DamagedError
from benchmark.store.leases import OtherRuns
from benchmark.store.local import DROPPED, MODELS
from benchmark.store.protocol import Store
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.plan.stage import Stage


ALL, VICTIMS, NONE = "all", "victims", "none"
_GOES: dict[str, tuple[Kind, ...]] = {
    ALL: ("part",),
    VICTIMS: ("part", "defend"),
    NONE: ("part", "defend", "attack"),
}


def check(keep: str) -> str:
    """Return the value of `--keep-models` if it is valid.

    Raises:
        UserError: it is not.
    """
    if keep not in _GOES:
        raise UserError(f"--keep-models {keep}: no such choice; use one of: {', '.join(_GOES)}")
    return keep


def goes(kind: Kind, keep: str) -> bool:
    """Return whether models of a kind are dropped."""
    return kind in _GOES[keep]


def drop(store: Store, kind: Kind, key: str) -> None:
    """Remove a model and keep its manifest."""
    manifest = store.manifest(kind, key)
    store.put(DROPPED, key, lambda folder: manifest)
    store.remove(kind, key)


def dropped(store: Store, keys: Iterable[str]) -> set[str]:
    """Return those of some keys under which a model was dropped."""
    return store.complete(DROPPED, keys)


def kind_of(store: Store, kind: str, key: str) -> str:
    """Return the kind under which the manifest of a stage is: its own, or `DROPPED` for a dropped model."""
    return DROPPED if kind in MODELS and not store.has(kind, key) and store.has(DROPPED, key) else kind


def manifest(store: Store, kind: str, key: str) -> dict[str, Any]:
    """Return the manifest of a stage, also where its model was dropped.

    Raises:
        DamagedError: it is missing or garbled.
    """
    try:
        return store.manifest(kind, key)
    except DamagedError:
        if kind_of(store, kind, key) == kind:
            raise
        return store.manifest(DROPPED, key)


class Keeper:
    """Drop each model as soon as every stage of a run that reads it is done, and no other run is at work."""

    def __init__(
        self, stages: Iterable[Stage], done: Collection[str], store: Store, keep: str, others: OtherRuns | None = None
    ) -> None:
        """Take the stages of a plan and the keys of those that are done; drop nothing yet.

        Args:
            stages: of the plan.
            done: keys of stages.
            store: holds the models.
            keep: which models stay.
            others: runs on the store that were looked at before; None: a first look takes all that left a lease to be
                at work.
        """
        self._store = store
        self._others = others or OtherRuns(store.lease_backend())
        self._unread: set[tuple[Kind, str]] = set()  # models that wait to be dropped
        stages = list(stages)
        self._readers: dict[tuple[Kind, str], set[str]] = {
            (stage.kind, stage.key): set() for stage in stages if goes(stage.kind, keep)
        }
        for stage in stages:
            for model in self._of(stage):
                if stage.key not in done:
                    self._readers[model].add(stage.key)

    def ended(self, stage: Stage) -> None:
        """Record that a stage is done, and drop the models that no stage is left to read."""
        for model in self._of(stage):
            self._readers[model].discard(stage.key)
            if not self._readers[model]:
                self._unread.add(model)
        self._drop_unread()

    def sweep(self) -> None:
        """Drop all models that no stage is left to read."""
        self._unread.update(model for model, readers in self._readers.items() if not readers)
        self._drop_unread()

    def _of(self, stage: Stage) -> list[tuple[Kind, str]]:
        return [(kind, need) for need in stage.needs for kind in _GOES[NONE] if (kind, need) in self._readers]

    def _drop_unread(self) -> None:
        if not self._unread or self._others.at_work():
            return
        for model in self._unread:
            if self._store.has(*model):
                drop(self._store, *model)
        self._unread.clear()
