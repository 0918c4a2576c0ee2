"""From cells to stages: what is needed, what is done, what is left, each piece of work once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmark.cell import NO_DEFENSE, Cell, Method, digest
from benchmark.stages import Stage
from benchmark.store import Store

_ORDER = ("attack", "defend", "evaluate")


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells, and all stages that they need.

    Attributes:
        cells: as in the grid.
        stages: every stage by key, done or not, in an order in which they can be done.
        done: keys of stages whose artifacts are in the store.
    """

    cells: tuple[Cell, ...]
    stages: dict[str, Stage]
    done: frozenset[str]

    @property
    def missing(self) -> list[Stage]:
        """Stages to run."""
        return [stage for stage in self.stages.values() if stage.key not in self.done]


def make(cells: Iterable[Cell], store: Store) -> Plan:
    """Plan the cells against a store. Victims are always measured: changes are told against them."""
    cells = tuple(cells)
    measured = dict.fromkeys(each for cell in cells for each in (victim_of(cell), cell))
    stages = {stage.key: stage for cell in measured for stage in stages_of(cell)}
    ordered = dict(sorted(stages.items(), key=lambda item: _ORDER.index(item[1].kind)))
    return Plan(cells, ordered, frozenset(key for key, stage in ordered.items() if is_done(stage, store)))


def is_done(stage: Stage, store: Store) -> bool:
    """Whether everything that a stage makes is in the store."""
    if stage.kind == "evaluate":
        return all(store.has("evaluate", key) for key in stage.metric_keys)
    return store.has(stage.kind, stage.key)


def victim_of(cell: Cell) -> Cell:
    """The same cell without a defense."""
    return replace(cell, defense=Method.parse("defenses", NO_DEFENSE))


def stages_of(cell: Cell) -> list[Stage]:
    """Attack, defense (unless there is none) and evaluation of a cell."""
    settings = cell.settings()
    stages = [Stage("attack", cell.attack_key, settings)]
    if cell.defense.name != NO_DEFENSE:
        stages.append(Stage("defend", cell.defense_key, settings, needs=(cell.attack_key,)))
    keys = tuple(cell.evaluation_key(metric) for metric in cell.metrics)
    return [*stages, Stage("evaluate", digest(keys), settings, (cell.defense_key,), keys)]
