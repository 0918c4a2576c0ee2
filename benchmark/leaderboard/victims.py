"""The victims of a board: submitted cells are compared with these, and not with numbers of their own.

A submitted cell belongs to a victim of the board's results if model, prompt format, data, attack, attack seed and
metrics agree. The library versions may differ: an entry comes from another machine, and `sande-bench leaderboard
verify` is for that.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import Method
from benchmark.grid.keys import canonical_json
from benchmark.records import schema
from sande.config import as_dict, configure
from sande.data.splits import Data, Removal
from sande.errors import UserError

_SECTIONS: dict[str, type[Any]] = {"data": Data, "removal": Removal}
_OF_VICTIM = ("model", "data", "attack", "metrics", prompt_format.SETTING)


@dataclass(frozen=True, slots=True)
class Victim:
    """A victim of the board.

    Attributes:
        asr: its ASR, percent.
        status: `ok`, or `attack_failed` where its ASR is under the board's floor.
        settings: those that determine it, as the board's rows have them.
        values: percent, by metric.
        removals: settings of the rows for removal, as the board's rows have them, by their canonical JSON.
    """

    asr: float
    status: str
    settings: Mapping[str, Any]
    values: dict[str, float] = field(default_factory=dict)
    removals: dict[str, Any] = field(default_factory=dict)


def known(rows: Iterable[Mapping[str, Any]]) -> dict[str, Victim]:
    """Return the victims of the board's own results by `key`; of several results with a victim, the first counts.

    Args:
        rows: of results that a run wrote, not of entries.
    """
    found: dict[str, Victim] = {}
    for row in rows:
        if row["status"] in (schema.OK, schema.ATTACK_FAILED) and row["victim_value"] is not None:
            of, removal, settings = _read(row["settings"])
            own = {name: settings[name] for name in _OF_VICTIM if name in settings}
            victim = found.setdefault(of, Victim(row["victim_asr"], row["status"], own))
            victim.values.setdefault(row["metric"], row["victim_value"])
            victim.removals.setdefault(removal, settings["removal"])
    return found


def placed(
    rows: Sequence[Mapping[str, Any]], victims: Mapping[str, Victim]
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Return the rows of an entry with the victims' values from the board, and the ids of cells without a victim there.

    A metric that the board did not measure on the victim gets no victim's value. Equal settings are written as the
    board has them, so that a default that is left out makes no other case.
    """
    made, unmatched = [], set()
    for row in rows:
        of, removal, settings = _read(row["settings"])
        victim = victims.get(of)
        if victim is None:
            unmatched.add(row["cell"])
            made.append({**row, "victim_value": None, "victim_asr": None})
        else:
            alike = {**settings, **victim.settings, "removal": victim.removals.get(removal, settings["removal"])}
            own = {
                "victim_value": victim.values.get(row["metric"]),
                "victim_asr": victim.asr,
                "status": victim.status,
                "settings": json.dumps(alike, sort_keys=True),
            }
            made.append({**row, **own})
    return made, frozenset(unmatched)


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return what determines a victim and its measurements, the settings of the removal's rows, and all settings.

    The first two are canonical JSON, in which settings that are left out take their defaults.
    """
    values = json.loads(text)
    victim = [
        values["model"],
        values["attack_seed"],
        _spelled_out("data", values["data"]),
        _spelled_out("attacks", values["attack"]),
        [_spelled_out("metrics", metric) for metric in values["metrics"]],
        values.get(prompt_format.SETTING),
    ]
    return canonical_json(victim), canonical_json(_spelled_out("removal", values["removal"])), values


def _spelled_out(kind: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with every default; those of a method that is not known here as they are.

    Args:
        kind: `data`, `removal`, or a kind of the registry.
        given: settings; a backdoor that is null counts as left out.
    """
    given = {name: value for name, value in given.items() if name != "backdoor" or value is not None}
    try:
        if kind in _SECTIONS:
            return as_dict(configure(_SECTIONS[kind], given, kind))
        return Method.parse(kind, given).settings
    except UserError:
        return given
