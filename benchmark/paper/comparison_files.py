"""The Parquet files of a comparison with the paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from benchmark.paper.compare import Compared
from benchmark.paper.evidence import Evidence
from benchmark.paper.scores import Scored
from benchmark.records.aggregate import TableEntry


def numbers(compared: Iterable[Compared]) -> pa.Table:
    """Return each reported number with ours."""
    records = [
        {
            "table": one.number.table,
            "setting": one.number.setting,
            "defense": one.number.defense,
            "victim_model": one.number.victim_model,
            "victim_data": one.number.victim_data,
            "trigger": one.number.trigger,
            "response": one.number.response,
            "parrot_position": one.number.parrot_position,
            "metric": one.number.metric,
            "paper": one.number.value,
            "paper_change": one.paper_change,
            "verdict": one.verdict,
            "margin": one.margin,
            "by_change": one.by_change,
            "paper_kind": one.paper_kind,
            "our_kind": one.our_kind,
            "in_kind": one.in_kind,
            **({} if one.entry is None else _ours_as_columns(one.entry)),
            **({} if one.evidence is None else _evidence_as_columns(one.evidence)),
            "as_near": list(one.as_near),
            "deviations": [made.path for made in one.deviations],
        }
        for one in compared
    ]
    return pa.Table.from_pylist(records, schema=_NUMBERS)


def scores(found: Iterable[Scored]) -> pa.Table:
    """Return the scores, one a row."""
    records = [asdict(one) | {"beyond_chance": one.beyond_chance} for one in found]
    return pa.Table.from_pylist(records, schema=_SCORES)


def _ours_as_columns(entry: TableEntry) -> dict[str, Any]:
    names = {"our_model": "model", "our_data": "dataset", "our_metric": "metric", "cell": "cell"}
    taken = {column: entry.row[name] for column, name in names.items()}
    return taken | {
        "value": entry.value,
        "change": entry.change,
        "seeds": entry.seeds,
        "failed": entry.failed,
        "not_run": entry.not_run,
    }


def _evidence_as_columns(evidence: Evidence) -> dict[str, Any]:
    (inner_low, inner_high), (outer_low, outer_high) = evidence.inner, evidence.outer
    return {
        "units": evidence.units,
        "unit": {"seeds": "attack seed", "victim": "defense seed", "model": "prompt"}[evidence.basis],
        "inner_low": inner_low,
        "inner_high": inner_high,
        "outer_low": outer_low,
        "outer_high": outer_high,
    }


_NUMBERS = pa.schema(
    [
        ("table", pa.int64()),
        ("setting", pa.string()),
        ("defense", pa.string()),
        ("victim_model", pa.string()),
        ("victim_data", pa.string()),
        ("trigger", pa.string()),
        ("response", pa.string()),
        ("parrot_position", pa.int64()),
        ("metric", pa.string()),
        ("paper", pa.float64()),  # percent
        ("paper_change", pa.float64()),  # against the reported victim, percentage points
        ("verdict", pa.string()),
        ("margin", pa.float64()),  # percentage points
        ("by_change", pa.bool_()),  # whether the changes are compared, not the values
        ("paper_kind", pa.string()),  # of an ASR: removed, partly or kept; of a change of utility: lost, kept, gained
        ("our_kind", pa.string()),
        ("in_kind", pa.bool_()),  # whether both are of one kind
        ("our_model", pa.string()),
        ("our_data", pa.string()),
        ("our_metric", pa.string()),
        ("cell", pa.string()),  # of the first seed
        ("value", pa.float64()),  # percent, mean over seeds
        ("change", pa.float64()),  # against our victim, percentage points
        ("seeds", pa.int64()),  # pairs of seeds, also those that failed or are not run
        ("failed", pa.int64()),  # of them
        ("not_run", pa.int64()),
        ("units", pa.int64()),  # of evidence
        ("unit", pa.string()),  # attack seed; defense seed (of this victim alone); prompt (of this model alone)
        ("inner_low", pa.float64()),  # 90 % interval of what is compared: the tests for equivalence
        ("inner_high", pa.float64()),
        ("outer_low", pa.float64()),  # 95 % interval of what is compared
        ("outer_high", pa.float64()),
        ("as_near", pa.list_(pa.string())),  # other forms of the method that are as near to the paper's protocol
        ("deviations", pa.list_(pa.string())),  # settings in which the cell is not the paper's
    ]
)

_SCORES = pa.schema(
    [
        ("numbers", pa.string()),  # ASR or utility
        ("score", pa.string()),
        ("found", pa.float64()),  # how many agree; of the order of the methods Kendall's tau
        ("count", pa.int64()),  # that could agree; of the order the paper's victims
        ("chance", pa.float64()),  # mean with the paper's methods shuffled
        ("chance_low", pa.float64()),  # 2.5 % point over the shuffles
        ("chance_high", pa.float64()),
        ("seeds", pa.int64()),  # of the order: our attack seeds, with the 95 % interval over them
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("beyond_chance", pa.string()),  # more, fewer or no
    ]
)
