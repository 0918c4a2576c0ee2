"""The victims of a board: submitted cells are compared with these, and not with numbers of their own.

A submitted cell belongs to a victim of the board's results if model, data, attack, attack seed and metrics agree. The
library versions may differ: an entry comes from another machine, and `sande-bench leaderboard verify` is for that.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.grid.cell import Method
from benchmark.grid.keys import canonical_json
from benchmark.records import schema
from sande.config import as_dict, configure
from sande.data.splits import Data
from sande.errors import UserError


@dataclass(frozen=True, slots=True)
class Victim:
    """A victim of the board.

    Attributes:
        asr: its ASR, percent.
        status: `ok`, or `attack_failed` where its ASR is under the board's floor.
        values: percent, by metric.
    """

    asr: float
    status: str
    values: dict[str, float] = field(default_factory=dict)


def known(rows: Iterable[Mapping[str, Any]]) -> dict[str, Victim]:
    """Return the victims of the board's own results by `key`; of several results with a victim, the first counts.

    Args:
        rows: of results that a run wrote, not of entries.
    """
    found: dict[str, Victim] = {}
    for row in rows:
        if row["status"] in (schema.OK, schema.ATTACK_FAILED) and row["victim_value"] is not None:
            of = key(row["settings"])
            victim = found.setdefault(of, Victim(row["victim_asr"], row["status"]))
            victim.values.setdefault(row["metric"], row["victim_value"])
    return found


def placed(
    rows: Sequence[Mapping[str, Any]], victims: Mapping[str, Victim]
) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Return the rows of an entry with the victims' values from the board, and the ids of cells without a victim there.

    A metric that the board did not measure on the victim gets no victim's value.
    """
    made, unmatched = [], set()
    for row in rows:
        victim = victims.get(key(row["settings"]))
        if victim is None:
            unmatched.add(row["cell"])
            made.append({**row, "victim_value": None, "victim_asr": None})
        else:
            value = victim.values.get(row["metric"])
            made.append({**row, "victim_value": value, "victim_asr": victim.asr, "status": victim.status})
    return made, frozenset(unmatched)


@functools.lru_cache(maxsize=4096)
def key(settings: str) -> str:
    """Return what determines a victim and its measurements, as JSON; settings that are left out take their defaults.

    Args:
        settings: of a cell, as JSON.
    """
    values = json.loads(settings)
    return canonical_json(
        [
            values["model"],
            values["attack_seed"],
            _spelled_out("data", values["data"]),
            _spelled_out("attacks", values["attack"]),
            [_spelled_out("metrics", metric) for metric in values["metrics"]],
        ]
    )


def _spelled_out(kind: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with every default; those of a method that is not known here as they are."""
    try:
        return as_dict(configure(Data, given, kind)) if kind == "data" else Method.parse(kind, given).settings
    except UserError:
        return given
