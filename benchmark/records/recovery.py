"""What the defenses of a report did to the backdoor, by what fresh parrots recover and by the clean twins.

The twin of a victim is the cell of the same attack with poison rate 0, the same seeds and no defense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmark.grid import prompt_format
from benchmark.records.aggregate import TableEntry, measured
from benchmark.records.runs import AboveTwin, Removal, Values, above_twin, removal
from sande import registry

RECOVERY = "parrot_recovery"


def judged(entries: Sequence[TableEntry]) -> list[TableEntry]:
    """Return the entries, those of `RECOVERY` with what the defense did; without poison there is nothing to judge."""
    twins: dict[str, Values] = {}
    rates: dict[tuple[str, str], Values] = {}
    for entry in entries:
        if entry.metric == RECOVERY and is_twin(entry):
            twins[twin_key(entry)] = entry.runs
        elif entry.shows_backdoor:
            rates[entry.defense, entry.victim] = entry.runs
    found = []
    for entry in entries:
        asr = rates.get((entry.defense, entry.victim), {})
        if entry.metric == RECOVERY and entry.runs and asr and entry.row["poison_rate"] != 0:
            entry = replace(entry, removal=_judged(entry, asr, twins.get(twin_key(entry), {})))
        found.append(entry)
    return found


def _judged(entry: TableEntry, asr: Values, twin: Values) -> Removal:
    by_seed = [[value for (seed, _), value in asr.items() if seed == attack] for attack in {seed for seed, _ in asr}]
    defended, victims = (AboveTwin(above_twin(values, twin)) for values in (entry.runs, entry.of_victims))
    verdict = removal(by_seed, defended, victims)
    is_whole = not (entry.failed or entry.not_run or entry.attack_failed)
    return verdict if is_whole or verdict == "present" else "undecided"


def is_twin(entry: TableEntry) -> bool:
    """Return whether an entry is of a clean twin."""
    return entry.is_victim and entry.row["poison_rate"] == 0


def twin_attack(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attack of the clean twin of a victim, which has no number of poisoned rows either."""
    return {**attack, "poison_rate": 0.0, **({"poison_rows": None} if "poison_rows" in attack else {})}


def twin_key(entry: TableEntry) -> str:
    """Return what an entry shares with the clean twin of its victim, which differs in the seeds' rows alone."""
    settings: Mapping[str, Any] = json.loads(entry.row["settings"])
    attack = twin_attack(settings["attack"])
    metrics = measured(settings["metrics"], registry.metric_of(entry.metric))
    shared = settings["model"], settings["data"], attack, metrics, settings.get(prompt_format.SETTING)
    return json.dumps(shared, sort_keys=True)
