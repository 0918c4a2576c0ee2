"""Plan cells: the stages that they need, done and missing, each once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmark.grid.cell import NO_DEFENSE, Cell, Method
from benchmark.grid.keys import digest
from benchmark.grid.resources import Kind
from benchmark.plan import retention
from benchmark.plan.failures import MISTAKE, Failure
from benchmark.plan.stage import Stage
from benchmark.store.local import MODELS
from benchmark.store.protocol import Store
from sande import threat

# Attacks come first, as many stages wait for them. All else comes cell by cell, so that an interrupted run has complete
# rows, and parts and models that are not kept are removed as soon as their defense is done or measured.
_ORDER: dict[Kind, int] = {"attack": 0, "part": 1, "defend": 1, "evaluate": 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells, and all stages that they need.

    Attributes:
        cells: cells of the grid.
        stages: every stage by key, done or missing, in an order in which they can run.
        done: keys of stages whose artifacts are in the store, and of dropped models and parts that no missing stage
            needs.
    """

    cells: tuple[Cell, ...]
    stages: dict[str, Stage]
    done: frozenset[str]

    @property
    def missing(self) -> list[Stage]:
        """Return the stages to run."""
        return [stage for stage in self.stages.values() if stage.key not in self.done]


def make_plan(cells: Iterable[Cell], store: Store, needed: Iterable[str] = ()) -> Plan:
    """Plan cells against a store. Victims are always measured: changes are reported relative to them.

    Args:
        cells: cells to plan.
        store: holds the artifacts that are done.
        needed: keys of models that must be there, even if no missing stage reads them.
    """
    cells = tuple(cells)
    measured = {cell.id: cell for cell in _with_victims(cells)}
    stages = {stage.key: stage for cell in measured.values() for stage in stages_of(cell)}
    ordered = dict(sorted(stages.items(), key=lambda item: _ORDER[item[1].kind]))
    return Plan(cells, ordered, _done(ordered, store, set(needed)))


def _with_victims(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Yield each cell behind its victim, which is made once for all cells that differ in nothing but the defense."""
    victims: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        methods = cell.attack.text, *(metric.text for metric in cell.metrics)
        shared = cell.attack_seed, cell.model, cell.prompt_format, cell.asr_floor, cell.data, cell.removal, methods
        if shared not in victims:
            victims[shared] = victim_of(cell)
        yield from (victims[shared], cell)


def _done(stages: Mapping[str, Stage], store: Store, needed: set[str]) -> frozenset[str]:
    """Return the keys of stages whose artifacts are all in the store, or were dropped and are not needed.

    A part is of no use but to its defense, so it counts as dropped.
    """
    makes = {key: (stage.kind, set(stage.artifacts)) for key, stage in stages.items()}
    wanted: dict[Kind, set[str]] = {kind: set() for kind in _ORDER}
    for kind, keys in makes.values():
        wanted[kind] |= keys
    found = {kind: store.complete(kind, keys) for kind, keys in wanted.items()}
    done = {key for key, (kind, keys) in makes.items() if keys <= found[kind]}
    gone = retention.dropped(store, (key for key, (kind, _) in makes.items() if kind in MODELS and key not in done))
    for key in reversed(list(stages)):  # a stage that reads a model comes behind the model's
        if key not in needed and (key in gone or stages[key].kind == "part"):
            done.add(key)
        elif key not in done:
            needed.update(stages[key].needs)
    return frozenset(done)


def unfit(cells: Iterable[Cell]) -> dict[str, Failure]:
    """Return, by the key of its stage, why a defense cannot be told what it must know of the attack's objective."""
    found: dict[str, Failure] = {}
    for cell in cells:
        if problem := threat.mismatch(cell.attack.config, cell.defense.name):
            found[cell.defense_key] = Failure(problem, MISTAKE)
    return found


def victim_of(cell: Cell) -> Cell:
    """Return the same cell without a defense, which all defense seeds share."""
    return replace(cell, defense=_no_defense(), defense_seed=cell.attack_seed)


@functools.cache
def _no_defense() -> Method:
    return Method.parse("defenses", NO_DEFENSE)


def stages_of(cell: Cell) -> list[Stage]:
    """Return the attack, the defense (unless it is none) behind its parts, and the evaluation of a cell."""
    stages = [Stage.of(cell, "attack", cell.attack_key)]
    if cell.defense.name != NO_DEFENSE:
        victim = (cell.attack_key,)
        parts = [Stage.of(cell, "part", cell.part_key(name), victim, part=name) for name in cell.defense.parts]
        needs = (*victim, *(part.key for part in parts))
        stages += [*parts, Stage.of(cell, "defend", cell.defense_key, needs)]
    keys = cell.evaluation_keys
    return [*stages, Stage.of(cell, "evaluate", digest(keys), needs=(cell.defense_key,), metric_keys=keys)]
