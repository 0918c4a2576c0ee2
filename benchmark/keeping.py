"""Which models a run keeps. One that is dropped leaves its manifest, from which rows are made.

STORE/dropped/<key>/manifest.json     of a victim or defended model whose weights are gone

It counts as done as long as nothing that is missing reads it; a new metric makes it anew, and its victim where that is
gone too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from benchmark.cell import Kind
from benchmark.store import MODELS, DamagedError
from benchmark.store_protocol import Store
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.stages import Stage

DROPPED = "dropped"
ALL, VICTIMS, NONE = "all", "victims", "none"
_GOES: dict[str, tuple[Kind, ...]] = {ALL: (), VICTIMS: ("defend",), NONE: ("attack", "defend")}


def check(keep: str) -> str:
    """What `--keep-models` was given, if it is one of its words.

    Raises:
        UserError: it is none.
    """
    if keep not in _GOES:
        raise UserError(f"--keep-models {keep}: it is one of {', '.join(_GOES)}")
    return keep


def goes(kind: Kind, keep: str) -> bool:
    """Whether models of a kind are dropped."""
    return kind in _GOES[keep]


def drop(store: Store, kind: Kind, key: str) -> None:
    """Remove a model, of which the manifest stays."""
    manifest = store.manifest(kind, key)
    store.put(DROPPED, key, lambda folder: manifest)
    store.remove(kind, key)


def dropped(store: Store, keys: Iterable[str]) -> set[str]:
    """Those of some models' keys under which one was dropped."""
    return store.complete(DROPPED, keys)


def kind_of(store: Store, kind: str, key: str) -> str:
    """Where the manifest of a stage lies: under its own kind, or where its model was dropped."""
    return DROPPED if kind in MODELS and not store.has(kind, key) and store.has(DROPPED, key) else kind


def manifest(store: Store, kind: str, key: str) -> dict[str, Any]:
    """What a stage wrote down, also where its model was dropped.

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
    """Drops each model as soon as every stage of a run that reads it is done."""

    def __init__(self, stages: Iterable[Stage], done: Collection[str], store: Store, keep: str) -> None:
        """Of a plan's stages and those of them that are done; nothing is dropped yet."""
        self._store, self._keep = store, keep
        stages = list(stages)
        self._readers: dict[tuple[Kind, str], set[str]] = {
            (stage.kind, stage.key): set() for stage in stages if goes(stage.kind, keep)
        }
        for stage in stages:
            for model in self._of(stage):
                if stage.key not in done:
                    self._readers[model].add(stage.key)

    def ended(self, stage: Stage) -> None:
        """A stage is done: what it was the last to read goes."""
        for model in self._of(stage):
            self._readers[model].discard(stage.key)
            self._drop_unread(model)

    def sweep(self) -> None:
        """What nothing is left to read goes."""
        for model in self._readers:
            self._drop_unread(model)

    def _of(self, stage: Stage) -> list[tuple[Kind, str]]:
        return [(kind, need) for need in stage.needs for kind in _GOES[NONE] if (kind, need) in self._readers]

    def _drop_unread(self, model: tuple[Kind, str]) -> None:
        if not self._readers[model] and self._store.has(*model):
            drop(self._store, *model)
