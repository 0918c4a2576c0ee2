"""Marks in the tables of a report: the best of each column, ties with it, and significant changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.records.aggregate import TableEntry
from benchmark.records.runs import p_value
from sande import registry
from sande.paired import mcnemar
from sande.statistics import benjamini_hochberg

SIGNIFICANT = 0.05
TIE = 5.0  # percentage points: farther from the best is no tie, however few seeds there are to show it


@dataclass(frozen=True, slots=True)
class Marks:
    """Results of the tests for one number of a table; None and False where nothing can be tested.

    Attributes:
        change_low, change_high: 95 % interval of the change relative to the victim, percentage points.
        p: p-value of that change, adjusted over the table.
        best: True for the best defense of its column.
        tie: True for a defense than which the best is not significantly better, and by at most `TIE` points.
        untested: True for a defense with a value that could not be tested against the best of its column.
    """

    change_low: float | None = None
    change_high: float | None = None
    p: float | None = None
    best: bool = False
    tie: bool = False
    untested: bool = False

    @property
    def significant(self) -> bool:
        """True if the change is significant."""
        return self.p is not None and self.p < SIGNIFICANT


def judge(chosen: Sequence[TableEntry]) -> list[Marks]:
    """Return the marks of each entry of a table.

    Each entry is tested against its victim and against the best of its column: over seeds, or, in a table whose entries
    all have one run, over the prompts of a pair of models (McNemar), if their outcomes are known. P-values are adjusted
    over the table (Benjamini-Hochberg). A defense without a p-value is neither a tie nor worse than the best: untested.
    """
    best, single = _best(chosen), all(entry.basis == "model" for entry in chosen)
    judged = {(chosen[index].victim, chosen[index].metric) for index in best}
    changes, rivals = {}, {}
    for index, entry in enumerate(chosen):
        if not entry.is_victim:
            changes[index] = _p(entry, None, single=single)
        if index in best and entry.value != best[index].value:
            rivals[index] = _p(entry, best[index], single=single)
    change_p, rival_p = _adjusted(changes), _adjusted(rivals)
    marks = []
    for index, entry in enumerate(chosen):
        is_best = index in best and entry.value == best[index].value
        is_near = index in best and abs((entry.value or 0.0) - (best[index].value or 0.0)) <= TIE
        tie = is_near and index in rival_p and rival_p[index] >= SIGNIFICANT
        untested = _is_whole(entry) and (entry.victim, entry.metric) in judged and not is_best and index not in rival_p
        marks.append(Marks(*_bounds(entry), change_p.get(index), is_best, tie, untested))
    return marks


def unjudged(chosen: Sequence[TableEntry]) -> list[Marks]:
    """Return marks with the interval of each change alone, for a table that compares no defenses."""
    return [Marks(*_bounds(entry)) for entry in chosen]


def _bounds(entry: TableEntry) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a change; None and None of the victim, or where it is unknown."""
    return (None if entry.is_victim else entry.change_interval()) or (None, None)


def _p(entry: TableEntry, other: TableEntry | None, *, single: bool) -> float | None:
    """Return the p-value that an entry and another one, or its victim, are the same; None if it is unknown.

    Args:
        entry: an entry of the table.
        other: of the same column; None: the entry's victim.
        single: True if all entries of the table have one run.
    """
    if not single:
        return p_value(entry.runs, other.runs if other else entry.of_victims)
    trials = other.trials if other else entry.of_victim
    if (pair := entry.against(trials)) is None:
        return None
    first, second = ([outcome == 1 for outcome in side] for side in pair)
    return mcnemar(first, second, entry.groups_with(trials))


def _best(chosen: Sequence[TableEntry]) -> dict[int, TableEntry]:
    """Return for each entry that competes the best of its column, if two or more compete.

    The victim does not compete, nor does an entry with a failed attack: the best one would have the weakest victim. Nor
    does one with failed or missing runs, which may be those on which it leaves the backdoor, nor one with other seeds
    than the most complete entry of its column: a single lucky run would be the best of many means.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(chosen):
        if not entry.is_victim and entry.value is not None:
            columns.setdefault((entry.victim, entry.metric), []).append(index)
    best: dict[int, TableEntry] = {}
    for (_, metric), indices in columns.items():
        seeds = _most_complete([chosen[index] for index in indices])
        rivals = [i for i in indices if _can_be_best(chosen[i]) and _seeds(chosen[i]) == seeds]
        if len(rivals) > 1:
            sign = 1 if registry.metric_info(metric).higher_is_better else -1
            winner = max((chosen[index] for index in rivals), key=lambda entry: sign * (entry.value or 0.0))
            best |= dict.fromkeys(rivals, winner)
    return best


def _is_whole(entry: TableEntry) -> bool:
    """Return whether an entry is of a defense of which no run, and no attack, failed or is missing."""
    has_flaw = entry.attack_failed or entry.failed or entry.not_run
    return not entry.is_victim and entry.value is not None and not has_flaw


def _can_be_best(entry: TableEntry) -> bool:
    return _is_whole(entry) and (entry.basis != "model" or entry.trials is not None)


def _seeds(entry: TableEntry) -> frozenset[object]:
    """Return the attack seeds of an entry; of one attack seed also the defense seeds, which are then the units."""
    attacks = frozenset(attack for attack, _ in entry.runs)
    return attacks if len(attacks) > 1 else frozenset(entry.runs)


def _most_complete(column: Sequence[TableEntry]) -> frozenset[object]:
    """Return the seeds of the entry with most attack seeds; of equally many those that most entries have."""
    common = Counter(map(_seeds, column))
    entry = max(column, key=lambda one: (one.attack_seeds, len(_seeds(one)), common[_seeds(one)]))
    return _seeds(entry)


def _adjusted(found: Mapping[int, float | None]) -> dict[int, float]:
    known = {index: p for index, p in found.items() if p is not None}
    return dict(zip(known, benjamini_hochberg(list(known.values())), strict=True))
