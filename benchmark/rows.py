"""Result rows: one a cell and metric, tidy, with settings and provenance; what every table and figure is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.cell import NO_DEFENSE, Cell, Method
from benchmark.plan import stages_of, victim_of
from benchmark.store import Store, write_atomically
from sande import registry
from sande.errors import UserError
from sande.statistics import wilson

OK, ATTACK_FAILED, FAILED = "ok", "attack_failed", "failed"

SCHEMA = pa.schema(
    [
        ("grid", pa.string()),
        ("cell", pa.string()),  # hash of the cell's settings
        ("status", pa.string()),  # ok, attack_failed (the victim's ASR is under the cell's floor), failed
        ("error", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # the victim's
        ("removal_dataset", pa.string()),
        ("setting", pa.string()),  # in-domain, out-of-domain
        ("attack", pa.string()),
        ("trigger", pa.string()),
        ("response", pa.string()),
        ("poison_rate", pa.float64()),
        ("defense", pa.string()),
        ("parrot_position", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # percent
        ("ci_low", pa.float64()),  # Wilson, 95 %, percent
        ("ci_high", pa.float64()),
        ("count", pa.int64()),  # prompts or questions
        ("victim_value", pa.float64()),  # the same metric on the victim, percent
        ("victim_asr", pa.float64()),  # percent; what status attack_failed is about
        ("seconds", pa.float64()),  # of the defense; 0 where there is none
        ("tokens", pa.int64()),  # trained on by the defense
        ("peak_memory_bytes", pa.int64()),  # of the defense
        ("attack_seconds", pa.float64()),
        ("attack_tokens", pa.int64()),
        ("metric_seconds", pa.float64()),
        ("device", pa.string()),
        ("code_version", pa.string()),
        ("versions", pa.string()),  # of Python and the libraries that compute
        ("started_at", pa.string()),
        ("settings", pa.string()),  # all of the cell's, as JSON
    ]
)


def build(grid: str, cells: Iterable[Cell], store: Store, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of all cells, failed ones included.

    Args:
        grid: its name.
        cells: done in the store, or with a stage among `errors`.
        store: artifacts.
        errors: one line for each stage that failed, by key.
    """
    manifests = _Manifests(store)
    return [row for cell in cells for row in _cell_rows(grid, cell, manifests, errors)]


def _cell_rows(grid: str, cell: Cell, manifests: _Manifests, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    failed = next((errors[stage.key] for stage in _needed(cell) if stage.key in errors), None)
    base = {
        "grid": grid,
        "cell": cell.id,
        "seed": cell.seed,
        "model": cell.model,
        "dataset": cell.data.name,
        "removal_dataset": cell.removal.name,
        "setting": cell.setting,
        "attack": cell.attack.name,
        "trigger": cell.attack.config.backdoor.trigger,
        "response": cell.attack.config.backdoor.response,
        "poison_rate": getattr(cell.attack.config, "poison_rate", None),
        "defense": cell.defense.name,
        "parrot_position": getattr(cell.defense.config, "parrot_position", None),
        "settings": json.dumps(cell.settings(), sort_keys=True),
    }
    if failed:
        return [
            base | {"status": FAILED, "error": failed, "metric": name}
            for metric in cell.metrics
            for name in registry.entry("metrics", metric.name).names(metric.config)
        ]
    victim = victim_of(cell)
    attack = manifests.get("attack", cell.attack_key)
    training = None if cell.defense.name == NO_DEFENSE else manifests.get("defend", cell.defense_key)
    victim_values = {
        m["name"]: 100 * m["successes"] / m["count"]
        for metric in victim.metrics
        for m in manifests.get("evaluate", victim.evaluation_key(metric))["measurements"]
    }
    base |= {
        "status": OK if victim_values["asr"] >= cell.asr_floor else ATTACK_FAILED,
        "victim_asr": victim_values["asr"],
        "seconds": training["seconds"] if training else 0.0,
        "tokens": training["tokens"] if training else 0,
        "peak_memory_bytes": training["peak_memory_bytes"] if training else 0,
        "attack_seconds": attack["seconds"],
        "attack_tokens": attack["tokens"],
    }
    return [row for metric in cell.metrics for row in _metric_rows(base, cell, metric, manifests, victim_values)]


def _metric_rows(
    base: dict[str, Any], cell: Cell, metric: Method, manifests: _Manifests, victim_values: Mapping[str, float]
) -> list[dict[str, Any]]:
    evaluation = manifests.get("evaluate", cell.evaluation_key(metric))
    rows = []
    for measured in evaluation["measurements"]:
        low, high = wilson(measured["successes"], measured["count"])
        rows.append(
            base
            | {
                "metric": measured["name"],
                "value": 100 * measured["successes"] / measured["count"],
                "ci_low": low,
                "ci_high": high,
                "count": measured["count"],
                "victim_value": victim_values.get(measured["name"]),
                "metric_seconds": evaluation["seconds"],
                "device": evaluation["device"],
                "code_version": evaluation["code_version"],
                "versions": ", ".join(f"{name} {number}" for name, number in evaluation["versions"].items()),
                "started_at": evaluation["started_at"],
            }
        )
    return rows


def _needed(cell: Cell) -> list[Any]:
    return [*stages_of(victim_of(cell)), *stages_of(cell)]


class _Manifests:
    """Manifests of the store, each read once: a victim's is asked for by every cell that it serves."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[tuple[str, str], dict[str, Any]] = {}

    def get(self, kind: str, key: str) -> dict[str, Any]:
        if (kind, key) not in self._read:
            self._read[kind, key] = self._store.manifest(kind, key)
        return self._read[kind, key]


def check_writable(folder: Path) -> None:
    """Make the folder and try it, so that hours of work are not followed by a refusal.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"results folder {folder} cannot be written ({error.strerror}); choose another --results"
        ) from None


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write `rows.parquet`, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    write_atomically(folder / "rows.parquet", sink.getvalue().to_pybytes())


def read(folder: Path) -> pa.Table:
    """The rows of a finished or partly failed grid.

    Raises:
        UserError: there are none, or the file is not of this schema.
    """
    path = folder / "rows.parquet"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no rows.parquet; give the folder of a grid that was run, such as results/quickstart"
        )
    try:
        table = pq.read_table(path).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is damaged or of another version ({reason}); run its grid again to write it anew"
        ) from None
    if not table.num_rows:
        raise UserError(f"{path} holds no rows; run its grid again to write it anew")
    return table
