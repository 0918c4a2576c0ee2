"""Rank defenses by ASR and by utility lost, over the cases that all of them were measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmark.grid.cell import NO_DEFENSE
from benchmark.grid.labels import labels
from benchmark.leaderboard.board import LEVELS, Board, Cells, Measured, Number, Row, Standing, Twin
from benchmark.records import schema
from sande import registry
from sande.statistics import of_sum, over_seeds, wilson


def rank(cells: Cells) -> Board:
    """Rank all defenses.

    Args:
        cells: result rows by cell and metric.
    """
    texts = list(dict.fromkeys(next(iter(cell.values()))["settings"] for cell in cells.values()))
    names = labels([json.loads(text) for text in texts])
    label_of = dict(zip(texts, (victim for _, victim in names), strict=True))
    twins = {_twin_key(row): cell for cell in cells.values() if _is_twin(row := next(iter(cell.values())))}
    measured: list[Measured] = []
    weak, failed, not_run, unmeasured = set(), 0, 0, 0
    for cell in cells.values():
        row = next(iter(cell.values()))
        if row["status"] == schema.FAILED:
            failed += 1
        elif any(one["status"] == schema.NOT_RUN for one in cell.values()):
            not_run += 1
        elif row["status"] == schema.ATTACK_FAILED:
            weak.add((_victim(json.loads(row["settings"])), row["attack_seed"]))
        elif row["defense"] != NO_DEFENSE:
            one = _measured(cell, label_of[row["settings"]], twins.get(_twin_key(row)))
            unmeasured += one is None
            measured += [one] if one else []
    return _ranked(measured, failed=failed, not_run=not_run, attack_failed=len(weak), unmeasured=unmeasured)


def by_cell(found: Iterable[Row]) -> Cells:
    """Return the rows of any number of grids by cell and metric; a cell that several grids have counts once."""
    cells: dict[str, dict[str, Row]] = {}
    for row in found:
        cells.setdefault(row["cell"], {}).setdefault(row["metric"], row)
    return cells


def _is_twin(row: Row) -> bool:
    return bool(row["defense"] == NO_DEFENSE and row["poison_rate"] == 0 and row["status"] == schema.OK)


def _twin_key(row: Row) -> str:
    """Return the settings that a cell has in common with the clean twin of its victim."""
    settings = json.loads(row["settings"])
    attack = settings["attack"] | {"poison_rate": 0.0}
    shared = [settings[key] for key in ("model", "data", "metrics")]
    return json.dumps([row["attack_seed"], attack, *shared], sort_keys=True)


def _measured(cell: Mapping[str, Row], label: str, twin: Mapping[str, Row] | None) -> Measured | None:
    row = cell["asr"]
    settings = json.loads(row["settings"])
    tasks = [task for task in _tasks(settings) if _is_measured(cell.get(task))]
    losses = [_loss(cell[task]) for task in tasks]
    if not losses:
        return None
    return Measured(
        cell=row["cell"],
        defense=row["defense"],
        knows=row["knows"],
        case=json.dumps([settings[key] for key in ("model", "data", "removal", "attack", "metrics")], sort_keys=True),
        label=label,
        victim=_victim(settings),
        attack_seed=row["attack_seed"],
        defense_seed=row["defense_seed"],
        victim_asr=row["victim_asr"],
        asr=_number(row),
        loss=_mean(losses),
        more=_more_of(cell),
        device=row["device"],
        seconds=row["seconds"],
        tokens=row["tokens"],
        twin=None if twin is None else _twin(twin, {task: cell[task]["victim_value"] for task in tasks}),
    )


def _twin(cell: Mapping[str, Row], victim: Mapping[str, float]) -> Twin:
    losses = [_loss({**cell[task], "victim_value": value}) for task, value in victim.items()]
    return Twin(cell["asr"]["cell"], _number(cell["asr"]), _mean(losses), _more_of(cell))


def _more_of(cell: Mapping[str, Row]) -> dict[str, Number]:
    columns = (name for name, row in cell.items() if row["value"] is not None and registry.metric_info(name).column)
    return {name: _number(cell[name]) for name in columns}


def _number(row: Row) -> Number:
    return Number(row["value"], row["ci_low"], row["ci_high"])


def _loss(row: Row) -> Number:
    """Return the loss of a task; its interval takes the two models' questions for independent, so it is too wide."""
    value, before = row["value"], row["victim_value"]
    if row["ci_low"] is None:
        return Number(before - value)
    interval = wilson(round(before / 100 * row["count"]), row["count"])
    below, above = of_sum([(1.0, before, *interval), (-1.0, value, row["ci_low"], row["ci_high"])])
    return Number(before - value, before - value - below, before - value + above)


def _is_measured(row: Row | None) -> bool:
    return row is not None and row["value"] is not None and row["victim_value"] is not None


def _tasks(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the utility metrics, each task once: no score per byte, subject group or second prompt."""
    asked = [metric["task"] for metric in settings["metrics"] if "task" in metric]
    return [task for task in asked if registry.metric_info(task).variant_of not in asked]


def _victim(settings: Mapping[str, Any]) -> str:
    return json.dumps([settings[key] for key in ("model", "data", "attack")], sort_keys=True)


def _ranked(measured: Sequence[Measured], **left_out: int) -> Board:
    by_defense: dict[str, list[Measured]] = {}
    for one in measured:
        by_defense.setdefault(one.defense, []).append(one)
    label_of = {one.case: one.label for one in measured}
    covered = [{one.case for one in cells} for cells in by_defense.values()]
    shared = set.intersection(*covered) if covered else set()
    kept = {
        defense: [one for one in cells if one.case in shared or not shared] for defense, cells in by_defense.items()
    }
    points = {
        defense: (_over_cases(cells, lambda one: one.asr), _over_cases(cells, lambda one: one.loss, lowest=-100.0))
        for defense, cells in kept.items()
    }
    ahead = fronts({defense: (asr.value, loss.value) for defense, (asr, loss) in points.items()})
    order = [(front, name) for front, names in enumerate(ahead, 1) for name in names]
    standings = [
        Standing(
            defense=name,
            knows=kept[name][0].knows,
            rank=rank if shared else None,
            front=front if shared else None,
            asr=points[name][0],
            loss=points[name][1],
            more=_more(kept[name], lambda one: one.more),
            seconds=_by_device(kept[name]),
            tokens=_over_cases(kept[name], lambda one: Number(one.tokens)).value,
            victims=len({one.victim for one in kept[name]}),
            seeds=len({one.attack_seed for one in kept[name]}),
            cells=len(kept[name]),
            lacks=tuple(label for case, label in label_of.items() if case not in {c.case for c in by_defense[name]}),
        )
        for rank, (front, name) in enumerate(order, 1)
    ]
    victims = [one for one in measured if one.case in shared]
    return Board(
        tuple(standings),
        shared=tuple(label for case, label in label_of.items() if case in shared),
        cases=tuple(label_of.values()),
        victim_asr=_over_cases(victims, lambda one: Number(one.victim_asr)).value if victims else None,
        cells=tuple(measured),
        compared=frozenset(shared),
        twin=_mean_twin(list({(one.case, one.attack_seed): one for one in victims}.values())),
        **left_out,
    )


def _mean_twin(victims: Sequence[Measured]) -> Twin | None:
    twin_of = {one.cell: one.twin for one in victims if one.twin}
    if not victims or len(twin_of) < len(victims):
        return None
    return Twin(
        "",
        _over_cases(victims, lambda one: twin_of[one.cell].asr),
        _over_cases(victims, lambda one: twin_of[one.cell].loss, lowest=-100.0),
        _more(victims, lambda one: twin_of[one.cell].more),
    )


def fronts(points: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """Return the names in Pareto fronts, the best first; each front is sorted by the first number, then the second.

    A point is dominated if another is at least as good in both numbers and better in one; smaller is better. The first
    front holds the points that no other dominates, the next front those that no other dominates without the first.
    """
    left = sorted(points, key=lambda name: (points[name], name))
    found = []
    while left:
        front = [name for name in left if not any(_dominates(points[other], points[name]) for other in left)]
        found.append(front)
        left = [name for name in left if name not in front]
    return found


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def _over_cases(cells: Sequence[Measured], number: Callable[[Measured], Number], lowest: float = 0.0) -> Number:
    """Return the mean over cases of the mean over each case's cells, so that more seeds give a case no more weight.

    Args:
        cells: of one defense.
        number: returns the number of a cell.
        lowest: least value that the number can have.
    """
    by_case: dict[str, list[Number]] = {}
    for one in cells:
        by_case.setdefault(one.case, []).append(number(one))
    return _mean([_over_seeds(numbers, lowest) for numbers in by_case.values()])


def _over_seeds(numbers: Sequence[Number], lowest: float) -> Number:
    """Return the mean, with the wider of two intervals: from the spread of the seeds, and from all their trials."""
    mean = _mean(numbers)
    if len(numbers) < 2 or mean.low is None or mean.high is None:
        return mean
    low, high = over_seeds([number.value for number in numbers], lowest)
    return Number(mean.value, min(mean.low, low), max(mean.high, high))


def _more(cells: Sequence[Measured], numbers: Callable[[Measured], Mapping[str, Number]]) -> dict[str, Number]:
    having: dict[str, list[Measured]] = {}
    for one in cells:
        for metric in numbers(one):
            having.setdefault(metric, []).append(one)
    return {
        metric: _over_cases(some, lambda one, metric=metric: numbers(one)[metric])  # type: ignore[misc]
        for metric, some in having.items()
    }


def _by_device(cells: Sequence[Measured]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in cells:
        found.setdefault(one.device, []).append(one.seconds)
    return {device: sum(seconds) / len(seconds) for device, seconds in found.items()}


def _mean(numbers: Sequence[Number]) -> Number:
    """Return the mean, with the interval for independent numbers if each number has one."""
    count = len(numbers)
    value = sum(number.value for number in numbers) / count
    parts = [
        (1 / count, one.value, one.low, one.high) for one in numbers if one.low is not None and one.high is not None
    ]
    if len(parts) < count:
        return Number(value)
    below, above = of_sum(parts)
    return Number(value, value - below, value + above)


def ladder(standings: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Return the standings by what the defense must know, the most first; each level is sorted by ASR, then by loss."""
    levels: dict[str, list[Standing]] = {}
    for one in sorted(standings, key=lambda one: (one.asr.value, one.loss.value)):
        levels.setdefault(one.knows, []).append(one)
    order = [*LEVELS, *sorted(set(levels) - set(LEVELS))]
    return {level: levels[level] for level in order if level in levels}
