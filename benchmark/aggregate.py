"""From rows to entries: seeds put together, and every cell of a table labelled by what tells it from its neighbours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from benchmark.rows import ATTACK_FAILED, FAILED
from sande.statistics import over_seeds

BACKDOOR_METRICS = ("asr", "asr_starts_with", "false_trigger_rate", "false_trigger_starts_with")


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of a table, over all seeds of its cell.

    Attributes:
        defense: row label: the defense, with those of its settings that vary in the grid.
        victim: column label: model, data set and setting, with whatever else of the attack or the data varies.
        metric: what was measured.
        value: mean over seeds, percent; None where every seed failed.
        low, high: 95 % interval, percent: Wilson for one seed, Student-t over several.
        change: value minus the victim's, percentage points.
        seeds, failed: how many cells stand behind it, and how many of them failed.
        attack_failed: how many victims are under the ASR floor.
        cost: mean `seconds`, `tokens`, `peak_memory_bytes` of the defense.
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


def entries(table: pa.Table) -> list[Entry]:
    """Entries of all cells and metrics, in the order of the rows."""
    rows = table.to_pylist()
    texts = list(dict.fromkeys(row["settings"] for row in rows))
    label_of = dict(zip(texts, labels([json.loads(text) for text in texts]), strict=True))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        defense, victim = label_of[row["settings"]]
        groups.setdefault((defense, victim, row["metric"]), []).append(row)
    return [_entry(*key, group) for key, group in groups.items()]


def _entry(defense: str, victim: str, metric: str, rows: list[dict[str, Any]]) -> Entry:
    good = [row for row in rows if row["status"] != FAILED]
    values = [row["value"] for row in good]
    changes = [row["value"] - row["victim_value"] for row in good if row["victim_value"] is not None]
    low, high = (None, None) if not good else (good[0]["ci_low"], good[0]["ci_high"])
    if len(values) > 1:
        low, high = over_seeds(values)
    return Entry(
        defense,
        victim,
        metric,
        value=_mean(values),
        low=low,
        high=high,
        change=_mean(changes),
        seeds=len({row["seed"] for row in rows}),
        failed=len(rows) - len(good),
        attack_failed=sum(row["status"] == ATTACK_FAILED for row in rows),
        cost={name: _mean([row[name] for row in good]) or 0.0 for name in ("seconds", "tokens", "peak_memory_bytes")},
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


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
