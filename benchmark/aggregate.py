"""From rows to entries: seeds put together, each entry with its label and its trials, ready to stand in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmark.cell import NO_DEFENSE
from benchmark.rows import ATTACK_FAILED, FAILED
from sande.metrics.accuracy import PAPER as PAPER_PROMPT
from sande.statistics import over_seeds, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BACKDOOR_METRICS = ("asr", "asr_starts_with", "false_trigger_rate", "false_trigger_starts_with")
PROBABILITY_METRICS = (
    "first_token_probability_clean",
    "first_token_probability",
    "phrase_probability_clean",
    "phrase_probability",
)
CASE_STUDY = "case_study"

Row = Mapping[str, Any]
Pair = tuple[list[float], list[float]]  # outcomes of the same trials, in the same order
Label = Callable[[Row], tuple[str, str]]


def is_utility(metric: str) -> bool:
    """Whether it says what a model can do, over all of a task."""
    return _is_ability(metric) and not is_part(metric)


def is_part(metric: str) -> bool:
    """Whether it is of a group of a task's questions, or counts the same answers in another way."""
    return _is_ability(metric) and (metric.endswith("_norm") or metric.removeprefix(PAPER_PROMPT).startswith("mmlu_"))


def _is_ability(metric: str) -> bool:
    return metric not in (*BACKDOOR_METRICS, CASE_STUDY) and "_probability" not in metric


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """Outcomes of one metric over all seeds of a cell.

    Attributes:
        keys: seed and index of each trial as one number, ascending; N of them.
        outcomes: 0 to 1; N of them.
    """

    keys: NDArray[np.int64]
    outcomes: NDArray[np.float64]


class Outcomes:
    """The outcomes of a results folder, by cell and metric."""

    _SEED = 2**24  # an index is below; NumPy takes seeds up to 2**32

    def __init__(self, table: pa.Table) -> None:
        import numpy as np

        cells, metrics = (table[name].combine_chunks().dictionary_encode() for name in ("cell", "metric"))
        codes = cells.indices.to_numpy().astype(np.int64) * len(metrics.dictionary) + metrics.indices.to_numpy()
        order = np.lexsort((table["index"].to_numpy(), codes))
        indices, outcomes = table["index"].to_numpy()[order], table["outcome"].to_numpy()[order]
        bounds = np.append(np.flatnonzero(np.diff(codes[order], prepend=-1)), len(order))
        self._of = {}
        for start, end in pairwise(bounds):
            cell, metric = divmod(int(codes[order[start]]), len(metrics.dictionary))
            key = (cells.dictionary[cell].as_py(), metrics.dictionary[metric].as_py())
            self._of[key] = (indices[start:end], outcomes[start:end])

    def trials(self, cells: Mapping[int, str], metric: str) -> Trials | None:
        """All that is known of a metric on cells, given by seed; None where nothing is."""
        import numpy as np

        found = [(seed, *self._of[cell, metric]) for seed, cell in sorted(cells.items()) if (cell, metric) in self._of]
        if not found:
            return None
        return Trials(
            np.concatenate([seed * self._SEED + indices for seed, indices, _ in found]),
            np.concatenate([outcomes for _, _, outcomes in found]),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of a table, over all seeds of its cell.

    Attributes:
        defense: row label: the defense, with those of its settings that vary in the grid.
        victim: column label: model, data set and setting, with whatever else of the attack or the data varies.
        metric: what was measured.
        value: mean over seeds, percent; None where every seed failed.
        low, high: 95 % interval, percent, of one seed, or the wider of Student-t over several and Wilson over all their
            trials; None where unknown.
        change: value minus the victim's, percentage points.
        seeds, failed: how many cells stand behind it, and how many of them failed.
        attack_failed: how many victims are under the ASR floor.
        cost: mean `seconds`, `tokens`, `peak_memory_bytes` of the defense.
        row: the first of its rows, for whatever the labels leave out.
        trials, of_victim: its outcomes and its victim's; None where they are not known.
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
    trials: Trials | None = None
    of_victim: Trials | None = None

    @property
    def is_victim(self) -> bool:
        """Whether it is of the victim itself."""
        return bool(self.row["defense"] == NO_DEFENSE)

    def against(self, other: Trials | None) -> Pair | None:
        """Outcomes of another and of this entry on the trials that they share; None without any."""
        if self.trials is None or other is None:
            return None
        import numpy as np

        _, others, own = np.intersect1d(other.keys, self.trials.keys, assume_unique=True, return_indices=True)
        return (other.outcomes[others].tolist(), self.trials.outcomes[own].tolist()) if len(own) else None


def parts(table: pa.Table) -> list[str]:
    """The grids whose cells are in the rows: one, or those that a union includes."""
    return list(dict.fromkeys(part for grids in table["grids"].to_pylist() for part in grids))


def entries(
    table: pa.Table, outcomes: Outcomes | None = None, part: str | None = None, label: Label | None = None
) -> list[Entry]:
    """Entries of all cells and metrics, in the order of the rows.

    Args:
        table: rows of a results folder.
        outcomes: of the same folder; without them entries have no trials.
        part: only cells that stand in this grid.
        label: defense and victim label of a row; what it does not tell apart gets its differences appended. Left out,
            `labels` of the settings.
    """
    rows = table.to_pylist()
    settings = {text: json.loads(text) for text in dict.fromkeys(row["settings"] for row in rows)}
    attacked = {text: _attacked(values) for text, values in settings.items()}
    victims = {(row["seed"], attacked[row["settings"]]): row["cell"] for row in rows if row["defense"] == NO_DEFENSE}
    identity = {text: _identity(values, without_domain=label is not None) for text, values in settings.items()}
    groups: dict[tuple[str, str], dict[int, Row]] = {}  # one row a seed
    for row in rows:
        if part is None or part in row["grids"]:
            groups.setdefault((identity[row["settings"]], row["metric"]), {}).setdefault(row["seed"], row)
    firsts = {cell: next(iter(by_seed.values())) for (cell, _), by_seed in groups.items()}
    named = {cell: label(row) for cell, row in firsts.items()} if label else _labels(firsts)
    names = _told_apart(named)
    made = []
    for (cell, metric), by_seed in groups.items():
        trials = of_victim = None
        if outcomes is not None:
            keys = {seed: (seed, attacked[row["settings"]]) for seed, row in by_seed.items()}
            good = {seed: row["cell"] for seed, row in by_seed.items() if row["status"] != FAILED}
            trials = outcomes.trials(good, metric)
            of_victim = outcomes.trials({seed: victims[key] for seed, key in keys.items() if key in victims}, metric)
        made.append(_entry(*names[cell], metric, list(by_seed.values()), trials, of_victim))
    return made


def _attacked(settings: Mapping[str, Any]) -> str:
    """What a victim and its repaired versions have in common: the attack, and what they are asked."""
    return json.dumps([settings[name] for name in ("model", "data", "attack", "metrics")], sort_keys=True)


def _identity(settings: Mapping[str, Any], *, without_domain: bool) -> str:
    """Settings but the seed, and without the removal rows, which a victim has no use for, unless a label tells them."""
    left_out = {"seed"} | ({"removal"} if without_domain and settings["defense"]["name"] == NO_DEFENSE else set())
    return json.dumps({name: value for name, value in settings.items() if name not in left_out}, sort_keys=True)


def _entry(
    defense: str, victim: str, metric: str, rows: Sequence[Row], trials: Trials | None, of_victim: Trials | None
) -> Entry:
    good = [row for row in rows if row["status"] != FAILED]
    values = [row["value"] for row in good]
    changes = [row["value"] - row["victim_value"] for row in good if row["victim_value"] is not None]
    low, high = (None, None) if not good else (good[0]["ci_low"], good[0]["ci_high"])
    if len(values) > 1:
        low, high = over_seeds(values)
        if count := sum(row["count"] or 0 for row in good):
            # Seeds that happen to agree do not make a number exact: at least the interval of all trials together.
            pooled = wilson(round(sum(values) / len(values) / 100 * count), count)
            low, high = min(low, pooled[0]), max(high, pooled[1])
    return Entry(
        defense,
        victim,
        metric,
        value=_mean(values),
        low=low,
        high=high,
        change=_mean(changes),
        seeds=len(rows),
        failed=len(rows) - len(good),
        attack_failed=sum(row["status"] == ATTACK_FAILED for row in rows),
        cost={name: _mean([row[name] for row in good]) or 0.0 for name in ("seconds", "tokens", "peak_memory_bytes")},
        row=rows[0],
        trials=trials,
        of_victim=of_victim,
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _labels(firsts: Mapping[str, Row]) -> dict[str, tuple[str, str]]:
    found = labels([json.loads(row["settings"]) for row in firsts.values()])
    return dict(zip(firsts, found, strict=True))


def _told_apart(named: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Labels by settings (as JSON); those that several have get appended what differs."""
    same: dict[tuple[str, str], list[str]] = {}
    for settings, label in named.items():
        same.setdefault(label, []).append(settings)
    told = {}
    for (defense, victim), several in same.items():
        flat = {settings: dict(_flatten(json.loads(settings))) for settings in several}
        differing = _short(_varying(flat.values()))
        for settings, values in flat.items():
            extra = {path: f", {short}={values.get(path)}" for path, short in differing.items()}
            of_defense = [text for path, text in extra.items() if path.startswith("defense.")]
            of_victim = [text for path, text in extra.items() if not path.startswith("defense.")]
            told[settings] = "".join([defense, *of_defense]), "".join([victim, *of_victim])
    return told


def labels(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(defense, victim) label of each cell's settings: names, and whatever else tells it from the others.

    Everything but the seed counts. A data set for removal is named only where one setting (in-domain, out-of-domain)
    has several.
    """
    flat = [dict(_flatten(values)) for values in settings]
    removal_sets: dict[tuple[Any, str], set[Any]] = {}
    by_defense: dict[Any, list[dict[str, Any]]] = {}
    for values in flat:
        removal_sets.setdefault((values["data.name"], _setting(values)), set()).add(values["removal.name"])
        by_defense.setdefault(values["defense.name"], []).append(values)
    of_defense = {name: _short(_varying(group, "defense.")) for name, group in by_defense.items()}
    named_already = {"seed", "model", "data.name", "removal.name"}
    of_victim = _short({path for path in _varying(flat) if not path.startswith("defense.")} - named_already)
    named = []
    for values in flat:
        model = str(values["model"]).rstrip("/").split("/")[-1]
        victim = [f"{model} / {values['data.name']}", _setting(values)]
        if len(removal_sets[values["data.name"], _setting(values)]) > 1:
            victim.append(f"removal {values['removal.name']}")
        victim += [f"{short}={values.get(path)}" for path, short in of_victim.items()]
        defense = [str(values["defense.name"])]
        defense += [f"{short}={values.get(path)}" for path, short in of_defense[values["defense.name"]].items()]
        named.append((", ".join(defense), ", ".join(victim)))
    return named


def _setting(flat: Mapping[str, Any]) -> str:
    return "in-domain" if flat["removal.name"] == flat["data.name"] else "out-of-domain"


def _varying(settings: Iterable[Mapping[str, Any]], prefix: str = "") -> set[str]:
    seen: dict[str, set[str]] = {}
    for values in settings:
        for path, value in values.items():
            if path.startswith(prefix):
                seen.setdefault(path, set()).add(json.dumps(value))
    return {path for path, distinct in seen.items() if len(distinct) > 1}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif key == "metrics":
            for metric in value:
                yield from _flatten(metric, f"metrics.{metric['name']}.")
        else:
            yield f"{prefix}{key}", value


def _short(paths: Iterable[str]) -> dict[str, str]:
    """Paths without their first part, as far as that leaves them different."""
    tails = [path.split(".", 1)[-1] for path in paths]
    return {path: tail if tails.count(tail := path.split(".", 1)[-1]) == 1 else path for path in sorted(paths)}
