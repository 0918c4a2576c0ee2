"""The section `search` of a grid: settings of the defenses that are found by search, for each cell its own.

search:
  space:
    defense.eliminate.learning_rate: {low: 1e-5, high: 1e-3}  # drawn log-uniformly; or a list of values
    defense.training.learning_rate: [1e-5, 1e-4]              # each path in those defenses that have it
  trials: 8
  held_out_rows: 64
  reports: 4
  judge: known

A judge compares the trials. `judge: known`, the default, uses held-out rows of the removal set, and of the backdoor
only what the defense itself may know (`benchmark.search.judge`). `judge: triggered` uses rows of the victim's set with
the trigger: Eq. 3 of the paper, on rows that neither victim, defense nor test has. That is a researcher's ablation (how
good can each defense be?), not a tool of a defender. So the rows of such cells carry the trigger as their knowledge.

The values to try depend on the cell's defense seed alone. Which of them ASHA stops early depends on the order in which
trials report, so two searches with several trials at a time may differ. What was found is in the store, and is not
searched for again.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmark.grid.cell import Cell
from benchmark.grid.keys import digest
from benchmark.grid.rules import assign, takes
from sande import registry
from sande.config import as_dict, configuration, configure, setting
from sande.errors import UserError
from sande.types import TriggerData

VERSION = 2  # raise it when the judge, its rows or the way values are drawn changes
KNOWN, TRIGGERED = "known", "triggered"  # judges
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # states of a trial


@configuration
class Search:
    """Section `search` of a grid: the space, and the effort."""

    space: dict[str, Any] | None = setting(None, "by path into the defense, {low, high} or a list of values")
    trials: int = setting(8, "values that are tried for a cell", ge=1, le=10_000)
    held_out_rows: int = setting(64, "rows on which a value is judged", ge=1)
    reports: int = setting(4, "reports of a trial, evenly over its last training; ASHA may stop it at each", ge=1)
    judge: Literal["known", "triggered"] = setting(
        KNOWN, "known: what the defense may know; triggered: rows with the trigger, which then counts as known"
    )


@dataclass(frozen=True, slots=True)
class Job:
    """The search for a cell, or for several cells that differ only in what is measured.

    Attributes:
        key: of its outcome in the store, a hash of everything that the outcome depends on.
        cell: the cell with the first of the proposals.
        proposals: for each trial its values by path.
        search: section of the grid.
    """

    key: str
    cell: Cell
    proposals: tuple[dict[str, Any], ...]
    search: Search

    @property
    def label(self) -> str:
        """Return a name for messages."""
        return f"search {self.cell.model.rstrip('/').split('/')[-1]} {self.cell.defense.name} {self.key[:8]}"


def parse(values: Mapping[str, Any], cells: Sequence[Cell]) -> Search | None:
    """Return the section `search` of a grid, checked against its cells; None where there is none.

    Raises:
        UserError: an unknown key, a path that no defense has, or values that it does not take.
    """
    if not values:
        return None
    search = configure(Search, values, "search")
    if not search.space:
        raise UserError("search: no 'space'; set paths, such as defense.eliminate.learning_rate: [1e-5, 1e-4]")
    for path, choice in search.space.items():
        if not path.startswith("defense.") or path == "defense.name":
            raise UserError(f"search: '{path}' is not a setting of a defense, which alone can be searched; remove it")
        taking = {cell.defense.name: cell for cell in cells if takes(cell.settings(), path)}
        if not taking:
            raise UserError(
                f"search: no defense of this grid has the setting '{path}'; see 'sande-bench show defenses NAME'"
            )
        for cell, value in itertools.product(taking.values(), _examples(path, choice)):
            try:
                with_values(cell, {path: value})
            except UserError as error:
                raise UserError(f"search: {error}") from None
    jobs = [job_of(search, cell) for cell in cells]
    if len({job.cell.id if job else cell.id for cell, job in zip(cells, jobs, strict=True)}) < len(cells):
        raise UserError("search: some cells differ only in what is searched; remove that from 'sweep'")
    return search


def _examples(path: str, choice: Any) -> list[Any]:
    """Return values that show whether the defense takes the whole of a choice."""
    if isinstance(choice, list) and choice:
        return choice
    if isinstance(choice, Mapping) and set(choice) == {"low", "high"}:
        low, high = choice["low"], choice["high"]
        if all(type(end) in (int, float) for end in (low, high)) and 0 < low < high:
            return [float(low), _draw(choice, random.Random(0)), float(high)]
    raise UserError(f"search: '{path}' is {choice!r}; use {{low: …, high: …}} with 0 < low < high, or a list of values")


def proposals(search: Search, cell: Cell) -> tuple[dict[str, Any], ...]:
    """Return the values of each trial by path; none where the cell's defense has none of the settings.

    Lists give every combination where there are no more than `trials`, else a sample of `trials`.
    """
    space = {path: choice for path, choice in sorted((search.space or {}).items()) if takes(cell.settings(), path)}
    if not space:
        return ()
    generator = random.Random(cell.defense_seed)
    if all(isinstance(choice, list) for choice in space.values()):
        count = math.prod(map(len, space.values()))
        if count > sys.maxsize:
            raise UserError("search: its lists have more combinations than can be counted; use shorter or fewer lists")
        places = range(count) if count <= search.trials else generator.sample(range(count), search.trials)
        points = [_point(place, list(space.values())) for place in places]
    else:
        points = [tuple(_draw(choice, generator) for choice in space.values()) for _ in range(search.trials)]
    return tuple(dict(zip(space, point, strict=True)) for point in points)


def _point(place: int, lists: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Return the combination at a place of `itertools.product`."""
    found = []
    for values in reversed(lists):
        place, index = divmod(place, len(values))
        found.append(values[index])
    return tuple(reversed(found))


def _draw(choice: Any, generator: random.Random) -> Any:
    if isinstance(choice, list):
        return generator.choice(choice)
    value = math.exp(generator.uniform(math.log(choice["low"]), math.log(choice["high"])))
    return float(f"{value:.3g}")  # more digits would only lengthen tables


def with_values(cell: Cell, values: Mapping[str, Any]) -> Cell:
    """Return the cell with other values at some paths.

    Raises:
        UserError: the defense does not take a value.
    """
    nested = cell.settings()
    for path, value in values.items():
        assign(nested, path, value)
    return Cell.parse(nested)


def job_of(search: Search, cell: Cell) -> Job | None:
    """Return the search that a cell needs; None where its defense has none of the settings."""
    proposed = proposals(search, cell)
    if not proposed:
        return None
    fixed = with_values(cell, proposed[0])
    # With the searched settings fixed, the defense's key covers the rest: victim, rows, other settings, code. Paths
    # that only other defenses have do not change what is tried for this one.
    section = as_dict(search)
    section["space"] = {path: section["space"][path] for path in proposed[0]}
    return Job(digest(["search", VERSION, fixed.defense_key, section]), fixed, proposed, search)


def level(search: Search, cell: Cell) -> str | None:
    """Return the level of knowledge by which a cell's settings are searched; None for a cell without a search."""
    if job_of(search, cell) is None:
        return None
    return (
        TriggerData.label
        if search.judge == TRIGGERED
        else registry.knowledge(cell.defense.name).level(cell.defense.settings)
    )
