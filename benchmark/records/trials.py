"""Outcomes of single prompts and questions, by cell and metric, and pairs of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmark.records.runs import Pair, Seeds
from sande.crossed import Answers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """Outcomes of one metric over all runs of a cell.

    Attributes:
        runs: by the seeds of a run, three arrays of shape (N,): the index of each question, ascending; its outcome from
            0 to 1; and the number of the questions made from the same template, -1 for one that is like no other.
    """

    runs: Mapping[Seeds, tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]

    @property
    def outcomes(self) -> NDArray[np.float64]:
        """The outcomes of all runs, one run after the other."""
        import numpy as np

        return np.concatenate([outcomes for _, outcomes, _ in self.runs.values()])

    def shares_above(self, limit: float) -> dict[Seeds, float]:
        """Return the share of outcomes above a limit, in percent, of each run."""
        return {seeds: 100 * float((outcomes > limit).mean()) for seeds, (_, outcomes, _) in self.runs.items()}

    def paired(self, other: Trials) -> Pair | None:
        """Return the outcomes of another cell and of this one, question by question; None without a common one.

        Only questions that a run of both cells was asked count. Of several runs, each question has the mean.
        """
        import numpy as np

        if not (found := self._common(other)):
            return None
        indices, first, second = (np.concatenate(part) for part in zip(*(each[:3] for each in found), strict=True))
        _, question, times = np.unique(indices, return_inverse=True, return_counts=True)
        means = [np.bincount(question, weights=part) / times for part in (first, second)]
        return means[0].tolist(), means[1].tolist()

    def groups_with(self, other: Trials) -> list[str]:
        """Return the group of each question of `paired`, in the same order; empty: the question is like no other."""
        import numpy as np

        found = self._common(other)
        if not found:
            return []
        indices, groups = (np.concatenate(part) for part in zip(*(each[::3] for each in found), strict=True))
        return _named(groups[np.unique(indices, return_index=True)[1]])

    def changes(self, other: Trials) -> Answers | None:
        """Return what this cell has more than another one, in percentage points, of shape (units, questions).

        A unit is an attack seed, or, of one attack seed, a defense seed; runs of one unit are averaged. Only questions
        that all runs of both cells were asked count; None without one.
        """
        import numpy as np

        shared = [seeds for seeds in self.runs if seeds in other.runs]
        asked = [side.runs[seeds][0] for seeds in shared for side in (self, other)]
        if not asked or not len(indices := functools.reduce(np.intersect1d, asked)):
            return None

        def values(side: Trials, seeds: Seeds) -> NDArray[np.float64]:
            own, outcomes, _ = side.runs[seeds]
            return outcomes[np.searchsorted(own, indices)]

        place = 0 if len({attack for attack, _ in shared}) > 1 else 1
        units: dict[int, list[NDArray[np.float64]]] = {}
        for seeds in shared:
            units.setdefault(seeds[place], []).append(100 * (values(self, seeds) - values(other, seeds)))
        own, _, groups = self.runs[shared[0]]
        names = _named(groups[np.searchsorted(own, indices)])
        return Answers(np.stack([np.mean(runs, axis=0) for runs in units.values()]), names)

    def _common(self, other: Trials) -> list[tuple[Any, ...]]:
        """Return of each run that both have the common questions, their outcomes in both, and their groups."""
        import numpy as np

        found = []
        for seeds, (indices, outcomes, groups) in self.runs.items():
            if seeds in other.runs:
                theirs, values, _ = other.runs[seeds]
                common, of_theirs, own = np.intersect1d(theirs, indices, assume_unique=True, return_indices=True)
                if len(common):
                    found.append((common, values[of_theirs], outcomes[own], groups[own]))
        return found


def _named(groups: NDArray[np.int64]) -> list[str]:
    """Return the group of each question as a name; empty: the question is like no other."""
    return ["" if number < 0 else str(number) for number in groups.tolist()]


class Outcomes:
    """The outcomes of a results folder, by cell and metric."""

    def __init__(self, table: pa.Table) -> None:
        import numpy as np

        (cell_codes, cells), (metric_codes, metrics) = (coded(table[name]) for name in ("cell", "metric"))
        codes = cell_codes.astype(np.int64) * len(metrics) + metric_codes
        order = np.lexsort((table["index"].to_numpy(), codes))
        indices, outcomes = table["index"].to_numpy()[order], table["outcome"].to_numpy()[order]
        groups = _groups(table)[order]
        bounds = np.append(np.flatnonzero(np.diff(codes[order], prepend=-1)), len(order))
        self._of = {}
        for start, end in pairwise(bounds):
            cell, metric = divmod(int(codes[order[start]]), len(metrics))
            key = (cells[cell].as_py(), metrics[metric].as_py())
            self._of[key] = (indices[start:end], outcomes[start:end], groups[start:end])

    def trials(self, cells: Mapping[Seeds, str], metric: str) -> Trials | None:
        """Return the trials of a metric over the cells, given by their seeds; None if there are none."""
        found = {seeds: self._of[cell, metric] for seeds, cell in cells.items() if (cell, metric) in self._of}
        return Trials(found) if found else None


def _groups(table: pa.Table) -> NDArray[np.int64]:
    """Return the number of each outcome's group; -1 without one, as in outcomes of earlier versions."""
    import numpy as np

    if "cluster" not in table.column_names:
        return np.full(table.num_rows, -1)
    encoded = table["cluster"].cast(pa.string()).dictionary_encode().combine_chunks()
    numbers: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    return numbers


def coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Return the place of each value among the distinct values, and the distinct values."""
    encoded = column.dictionary_encode().combine_chunks()
    return encoded.indices.to_numpy(), encoded.dictionary
