"""Aggregate rows to table entries: the seeds of a cell together, with labels, intervals, costs and trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE, SEEDS
from benchmark.grid.labels import labels, made_unique
from benchmark.records import runs as runs_of_a_cell
from benchmark.records.runs import Basis, Pair, Removal, Seeds, Values
from benchmark.records.schema import ATTACK_FAILED, FAILED, NOT_RUN, Row
from benchmark.records.trials import Outcomes, Trials, coded
from sande import registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sande.crossed import Answers


_COSTS = ("seconds", "tokens", "peak_memory_bytes")
Label = Callable[[Row], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One number of a table, over all seeds of its cell, of the attack and of the defense.

    Attributes:
        defense: row label: the defense, with those of its settings that vary in the grid.
        victim: column label: model, data set and setting, with other settings of attack and data that vary.
        metric: name of the measurement.
        value: mean over attack seeds, percent; None if no run has a value.
        low, high: 95 % interval, percent, of what `basis` says; None if unknown.
        change: value minus the victim's, percentage points.
        seeds, failed: number of cells, one for each pair of seeds, and of those that failed.
        attack_failed: number of victims under the ASR floor.
        not_run: number of cells that an interrupted run did not finish.
        cost: mean `seconds`, `tokens`, `peak_memory_bytes` of the defense.
        row: the first of its rows, for values that the labels leave out.
        runs, of_victims: value of each run that has one, and of its victim, percent, by the seeds of the run.
        trials, of_victim: its outcomes and its victim's; None if unknown.
        removal: of a parrot's recovery, what the defense did to the backdoor, see `benchmark.records.recovery`.
    """

    defense: str
    victim: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    change: float | None
    seeds: int
    failed: int
    attack_failed: int
    cost: Mapping[str, float]
    row: Row
    runs: Values = field(default_factory=dict)
    of_victims: Values = field(default_factory=dict)
    trials: Trials | None = None
    of_victim: Trials | None = None
    not_run: int = 0
    removal: Removal | None = None

    @property
    def is_victim(self) -> bool:
        """True for the victim itself."""
        return bool(self.row["defense"] == NO_DEFENSE)

    @property
    def shows_backdoor(self) -> bool:
        """True if the metric shows the attack's backdoor: its ASR, or what the attack declares instead."""
        return self.metric == registry.shown_by(self.row.get("attack") or "")

    @property
    def basis(self) -> Basis:
        """What interval and tests hold for: this model, this victim, or any attack seed."""
        return runs_of_a_cell.basis_of(self.runs)

    @property
    def attack_seeds(self) -> int:
        """Number of attack seeds that have a value."""
        return len({attack for attack, _ in self.runs})

    def against(self, other: Trials | None) -> Pair | None:
        """Return the outcomes of another entry and of this one, question by question; None without a common one."""
        return None if self.trials is None or other is None else self.trials.paired(other)

    def groups_with(self, other: Trials | None) -> list[str]:
        """Return the group of each question of `against`: questions made from the same template."""
        return [] if self.trials is None or other is None else self.trials.groups_with(other)

    def changes(self) -> Answers | None:
        """Return what changed of each unit and question, percentage points; see `benchmark.records.trials`."""
        return None if self.trials is None or self.of_victim is None else self.trials.changes(self.of_victim)

    def change_interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the change, percentage points; None if it is unknown."""
        pair, groups = self.against(self.of_victim), self.groups_with(self.of_victim)
        return runs_of_a_cell.change_interval(self.metric, self.runs, self.of_victims, pair, groups, self.changes())

    def failures(self) -> tuple[float, float, float] | None:
        """Return the share of runs that did not remove the backdoor, with its interval, percent; None of one run."""
        return None if len(self.runs) < 2 else runs_of_a_cell.failures(self.runs)


def parts(table: pa.Table) -> list[str]:
    """Return the grids whose cells are in the rows: one, or those that a grid includes."""
    found: list[str] = table["grids"].combine_chunks().flatten().unique().to_pylist()
    return found


class Results:
    """The rows of a results folder; makes their entries, grid by grid.

    A million rows would be gigabytes as dictionaries, so they stay columns, and settings are parsed once for all seeds,
    metrics and grids.

    Args:
        table: rows of a results folder.
        outcomes: of the same folder; None: entries have no trials.
    """

    def __init__(self, table: pa.Table, outcomes: Outcomes | None = None) -> None:
        import numpy as np

        self._table = table
        self._outcomes = outcomes
        codes, texts = coded(table["settings"])
        places, self._settings = _without_seeds(texts.to_pylist())
        self._attacked = [_attacked(values) for values in self._settings]
        # Of each row:
        self._place = np.array(places)[codes]  # in those two lists
        self._numbers = {name: table[name].to_numpy() for name in ("value", "victim_value", "count", *_COSTS)}
        self._seeds = np.stack([table[name].to_numpy() for name in SEEDS], axis=1)
        # A number for each pair of seeds, in order:
        attack, defense = self._seeds.T.astype(np.uint64)  # each below 2**32
        self._pairs = np.unique(attack << np.uint64(32) | defense, return_inverse=True)[1]
        self._failed, self._not_run, self._weak = (
            pc.equal(table["status"], status).to_numpy() for status in (FAILED, NOT_RUN, ATTACK_FAILED)
        )
        self._victims = {} if outcomes is None else self._cell_of_victim()

    def _cell_of_victim(self) -> dict[tuple[int, str], str]:
        """Return the victims' cells, by attack seed and the settings that a victim shares with its defended cells."""
        rows = pc.equal(self._table["defense"], NO_DEFENSE).to_numpy().nonzero()[0]
        attacked = (self._attacked[place] for place in self._place[rows])
        keys = zip(self._seeds[rows, 0].tolist(), attacked, strict=True)
        return dict(zip(keys, self._cells(rows), strict=True))

    def _cells(self, rows: NDArray[np.int64]) -> list[str]:
        cells: list[str] = self._table["cell"].take(rows).to_pylist()
        return cells

    def entries(self, part: str | None = None, label: Label | None = None) -> list[TableEntry]:
        """Return the entries of all cells and metrics, in the order of the rows.

        Args:
            part: only cells of this grid; None: of all.
            label: returns the defense and victim label of a row; where it gives several cells the same label, their
                differing settings are appended. None: `benchmark.grid.labels.labels` of the settings.
        """
        cells = [_cell(values, without_domain=label is not None) for values in self._settings]
        groups = self._groups([_identity(cell) for cell in cells], part)
        firsts: list[Row] = self._table.take(pa.array([rows[0] for _, rows in groups], pa.int64())).to_pylist()
        texts = [json.dumps(cell, sort_keys=True) for cell in cells]
        own = [texts[self._place[rows[0]]] for _, rows in groups]
        of_cell: dict[str, Row] = {}
        for identity, row in zip(own, firsts, strict=True):
            of_cell.setdefault(identity, row)
        if label:
            named = {identity: label(row) for identity, row in of_cell.items()}
        else:
            found = labels([json.loads(row["settings"]) for row in of_cell.values()])
            named = dict(zip(of_cell, found, strict=True))
        names = made_unique(named)
        return [
            self._entry(*names[identity], metric, rows, row)
            for identity, (metric, rows), row in zip(own, groups, firsts, strict=True)
        ]

    def _groups(self, cells: Sequence[str], part: str | None) -> list[tuple[str, NDArray[np.int64]]]:
        """Return metric and rows (one per pair of seeds) of each entry, in the order of the rows.

        Args:
            cells: identity of each distinct settings, without its metrics.
            part: only rows of this grid; None: all.
        """
        import numpy as np

        rows = _rows_of(self._table, part)
        metrics, names = coded(self._table["metric"])
        numbers: dict[tuple[str, str], int] = {}
        identities = np.array(
            [
                [numbers.setdefault(pair, len(numbers)) for pair in zip(cells, self._measured(name), strict=True)]
                for name in names.to_pylist()
            ]
        )
        key = identities[metrics[rows], self._place[rows]] * len(names) + metrics[rows]
        pairs, pair = np.unique(self._pairs[rows], return_inverse=True)
        single = np.sort(np.unique(key * len(pairs) + pair, return_index=True)[1])  # of several rows the first
        _, first, which = np.unique(key[single], return_index=True, return_inverse=True)
        order = np.argsort(first[which], kind="stable")
        groups = np.split(single[order], np.flatnonzero(np.diff(first[which][order])) + 1)
        return [(names[int(metrics[rows[g[0]]])].as_py(), rows[g]) for g in groups if len(g)]

    def _measured(self, measurement: str) -> list[str]:
        """Return how each distinct settings measure something, as JSON."""
        metric = registry.metric_of(measurement)
        return [json.dumps(measured(values["metrics"], metric), sort_keys=True) for values in self._settings]

    def _entry(self, defense: str, victim: str, metric: str, rows: NDArray[np.int64], first: Row) -> TableEntry:
        good = rows[~(self._failed | self._not_run)[rows]]
        values, victims = self._values(good)
        trials, of_victim = self._trials(metric, rows, good)
        low, high = self._interval(metric, values, good)
        return TableEntry(
            defense,
            victim,
            metric,
            value=runs_of_a_cell.mean(values),
            low=low,
            high=high,
            change=runs_of_a_cell.change(values, victims),
            seeds=len(rows),
            failed=int(self._failed[rows].sum()),
            attack_failed=int(self._weak[rows].sum()),
            cost={name: _mean(self._numbers[name][good]) or 0.0 for name in _COSTS},
            row=first,
            runs=values,
            of_victims=victims,
            trials=trials,
            of_victim=of_victim,
            not_run=int(self._not_run[rows].sum()),
        )

    def _values(self, good: NDArray[np.int64]) -> tuple[dict[Seeds, float], dict[Seeds, float]]:
        """Return the values of the rows and of their victims by seeds, sorted; without rows that have no value."""
        import numpy as np

        rows = good[np.argsort(self._pairs[good], kind="stable")]
        seeds = list(map(tuple, self._seeds[rows].tolist()))
        own, victims = (
            {
                pair: value
                for pair, value in zip(seeds, self._numbers[name][rows].tolist(), strict=True)
                if value == value
            }
            for name in ("value", "victim_value")
        )
        return own, victims

    def _interval(
        self, metric: str, values: Values, good: NDArray[np.int64]
    ) -> tuple[float, float] | tuple[float | None, float | None]:
        """Return the interval of the mean: of one run that of its row."""
        import numpy as np

        if len(values) > 1:
            counts = self._numbers["count"][good]
            return runs_of_a_cell.interval(metric, values, 0 if np.isnan(counts).any() else int(counts.min()))
        rows = self._table.select(["ci_low", "ci_high"]).take(good).to_pylist()
        return (rows[0]["ci_low"], rows[0]["ci_high"]) if rows else (None, None)

    def _trials(
        self, metric: str, rows: NDArray[np.int64], good: NDArray[np.int64]
    ) -> tuple[Trials | None, Trials | None]:
        """Return the trials of the rows and of their victims."""
        if self._outcomes is None:
            return None, None
        seeds = [(attack, defense) for attack, defense in self._seeds[rows].tolist()]
        victims = {
            pair: self._victims[pair[0], self._attacked[place]]
            for pair, place in zip(seeds, self._place[rows], strict=True)
            if (pair[0], self._attacked[place]) in self._victims
        }
        own = zip((tuple(pair) for pair in self._seeds[good].tolist()), self._cells(good), strict=True)
        return self._outcomes.trials(dict(sorted(own)), metric), self._outcomes.trials(
            dict(sorted(victims.items())), metric
        )


def _rows_of(table: pa.Table, part: str | None) -> NDArray[np.int64]:
    """Return the numbers of the rows of a grid; without a grid those of all rows."""
    import numpy as np

    if part is None:
        return np.arange(table.num_rows)
    grids = table["grids"].combine_chunks()
    inside = np.zeros(table.num_rows, dtype=bool)
    inside[pc.list_parent_indices(grids).filter(pc.equal(grids.flatten(), part)).to_numpy()] = True
    return np.flatnonzero(inside)


def _without_seeds(texts: Iterable[str]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return distinct settings without the seeds, and for each text the place of its settings among them."""
    places: dict[str, int] = {}
    found = []
    for text in texts:
        settings = json.loads(text)
        for name in SEEDS:
            settings.pop(name, None)
        found.append(places.setdefault(json.dumps(settings, sort_keys=True), len(places)))
    return found, [json.loads(text) for text in places]


def _attacked(settings: Mapping[str, Any]) -> str:
    """Return the settings that a victim shares with its defended cells: the attack and the measurements."""
    names = "model", "data", "attack", "metrics", prompt_format.SETTING
    return json.dumps([settings.get(name) for name in names], sort_keys=True)


def _cell(settings: Mapping[str, Any], *, without_domain: bool) -> dict[str, Any]:
    """Return the settings of a cell without the seeds; a null one is as one that an earlier version did not have.

    For a label without domain a victim has no removal rows.
    """
    left_out = {*SEEDS} | ({"removal"} if without_domain and settings["defense"]["name"] == NO_DEFENSE else set())
    return _set({name: value for name, value in settings.items() if name not in left_out})


def _identity(cell: Mapping[str, Any]) -> str:
    """Return the settings of a cell without its metrics, of which one seed may have more than another."""
    return json.dumps({name: value for name, value in cell.items() if name != "metrics"}, sort_keys=True)


def measured(metrics: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    """Return the settings of one of a cell's metrics, which it may have several times; of an unknown one those of all.

    Args:
        metrics: of the cell.
        metric: key of a metric, see `sande.registry.metric_of`.
    """
    return [_set(one) for one in metrics if one["name"] == metric or not metric]


def _set(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a value, at any depth."""
    found = {name: _set(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    return {name: value for name, value in found.items() if value is not None and value != {}}


def _mean(values: NDArray[np.float64]) -> float | None:
    # Summed one by one, as NumPy's pairwise sum has other last digits.
    return sum(values.tolist()) / len(values) if len(values) else None
