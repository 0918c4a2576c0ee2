"""From cells to stages: what is needed, what is done, what is left, each piece of work once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmark import keeping
from benchmark.cell import NO_DEFENSE, Cell, Kind, Method, digest
from benchmark.stages import Stage
from benchmark.store import MODELS
from benchmark.store_protocol import Store

_ORDER: tuple[Kind, ...] = ("attack", "defend", "evaluate")


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells, and all stages that they need.

    Attributes:
        cells: as in the grid.
        stages: every stage by key, done or not, in an order in which they can be done.
        done: keys of stages whose artifacts are in the store, or are models that were dropped and that nothing needs.
    """

    cells: tuple[Cell, ...]
    stages: dict[str, Stage]
    done: frozenset[str]

    @property
    def missing(self) -> list[Stage]:
        """Stages to run."""
        return [stage for stage in self.stages.values() if stage.key not in self.done]

    def has(self, cell: Cell) -> bool:
        """Whether all stages of a cell and of its victim are done."""
        return all(stage.key in self.done for each in (victim_of(cell), cell) for stage in stages_of(each))


def make(cells: Iterable[Cell], store: Store, needed: Iterable[str] = ()) -> Plan:
    """Plan the cells against a store. Victims are always measured: changes are told against them.

    Args:
        cells: to be done.
        store: what is there.
        needed: keys of models that have to be there, though nothing of the plan may be left to read them.
    """
    cells = tuple(cells)
    measured = {cell.id: cell for cell in _with_victims(cells)}
    stages = {stage.key: stage for cell in measured.values() for stage in stages_of(cell)}
    ordered = dict(sorted(stages.items(), key=lambda item: _ORDER.index(item[1].kind)))
    return Plan(cells, ordered, _done(ordered, store, set(needed)))


def _with_victims(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Yield each cell behind its victim, which is made once for all cells that differ in nothing but the defense."""
    victims: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        methods = cell.attack.text, *(metric.text for metric in cell.metrics)
        shared = cell.seed, cell.model, cell.asr_floor, cell.data, cell.removal, methods
        if shared not in victims:
            victims[shared] = victim_of(cell)
        yield from (victims[shared], cell)


def _done(stages: Mapping[str, Stage], store: Store, needed: set[str]) -> frozenset[str]:
    """Keys of those stages of which everything that they make is in the store, or was and is not read any more."""
    makes = {key: (stage.kind, set(stage.artifacts)) for key, stage in stages.items()}
    wanted: dict[Kind, set[str]] = {kind: set() for kind in _ORDER}
    for kind, keys in makes.values():
        wanted[kind] |= keys
    found = {kind: store.complete(kind, keys) for kind, keys in wanted.items()}
    done = {key for key, (kind, keys) in makes.items() if keys <= found[kind]}
    gone = keeping.dropped(store, (key for key, (kind, _) in makes.items() if kind in MODELS and key not in done))
    for key in reversed(list(stages)):  # what reads a model comes behind it
        if key in gone - needed:
            done.add(key)
        elif key not in done:
            needed.update(stages[key].needs)
    return frozenset(done)


def victim_of(cell: Cell) -> Cell:
    """The same cell without a defense."""
    return replace(cell, defense=_no_defense())


@functools.cache
def _no_defense() -> Method:
    return Method.parse("defenses", NO_DEFENSE)


def stages_of(cell: Cell) -> list[Stage]:
    """Attack, defense (unless there is none) and evaluation of a cell."""
    stages = [Stage.of(cell, "attack", cell.attack_key)]
    if cell.defense.name != NO_DEFENSE:
        stages.append(Stage.of(cell, "defend", cell.defense_key, needs=(cell.attack_key,)))
    keys = cell.evaluation_keys
    return [*stages, Stage.of(cell, "evaluate", digest(keys), needs=(cell.defense_key,), metric_keys=keys)]
