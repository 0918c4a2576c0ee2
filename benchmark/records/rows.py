"""Result rows, one per cell and metric, with settings and provenance; all tables and figures are made from them.

A second file has the outcome of every prompt and question, so that any statistic can be recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.grid import prompt_format, sources
from benchmark.grid.cell import NO_DEFENSE, SEEDS, Cell, Method
from benchmark.grid.levels import together
from benchmark.plan import retention
from benchmark.plan.failures import INTERRUPTED, UNFINISHED, UNSCORABLE, kind_of
from benchmark.plan.plan import stages_of, victim_of
from benchmark.records.files import read_rows
from benchmark.records.schema import ATTACK_FAILED, FAILED, NOT_RUN, OK, OUTCOMES, PROVENANCE
from benchmark.store.manifest import OTHER_FORM
from benchmark.store.protocol import Store
from sande import registry, threat
from sande.errors import UserError
from sande.statistics import of_one_model

_Manifest = Callable[[str, str], dict[str, Any]]  # of a kind and a key


def build_rows(
    grid: str,
    cells: Iterable[Cell],
    store: Store,
    errors: Mapping[str, str],
    parts: Mapping[str, Sequence[str]] | None = None,
    scale: str = "",
    unknown: Collection[str] = (),
    searched: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all cells, including cells that failed or were not run.

    Args:
        grid: its name.
        cells: done in the store, or with a stage among `errors`.
        store: artifacts.
        errors: one line for each stage that failed, by key.
        parts: grid files that a cell belongs to, by cell id; None: the grid itself.
        scale: at which the grid was expanded.
        unknown: ids of cells whose settings a search has not found yet, so that the store has no artifact of theirs.
        searched: level of knowledge by which a search found a cell's settings, by cell id.
    """
    # Every cell of a victim asks for the victim's manifest.
    manifest = lru_cache(maxsize=1024)(partial(retention.manifest, store))
    for cell in cells:
        base = {"grid": grid, "grids": list((parts or {}).get(cell.id, (grid,))), "scale": scale}
        used = (searched or {}).get(cell.id)
        is_known = cell.id not in unknown
        with _of_this_form(cell, store):
            made = _cell_rows(cell, store, manifest, errors, is_known=is_known)
        for row in made:
            yield base | row | {"knows": together(row["knows"], used), "searched": used}


def build_outcomes(cells: Iterable[Cell], store: Store) -> Iterator[pa.Table]:
    """Yield the outcomes of all finished cells: a table of schema `OUTCOMES` per cell and metric."""
    for cell in cells:
        for metric in cell.metrics:
            key = cell.evaluation_key(metric)
            if store.has("evaluate", key):
                with _of_this_form(cell, store):
                    published = [m["name"] for m in store.manifest("evaluate", key)["measurements"] if m["published"]]
                # `pq.read_table` takes three times as long for such a small file.
                with pq.ParquetFile(store.read("evaluate", key) / "outcomes.parquet") as file:
                    found = file.read(use_threads=False)
                shown = pc.is_in(found["metric"], value_set=pa.array(published, pa.string()))
                if "cluster" not in found.column_names:
                    found = found.append_column("cluster", pa.nulls(found.num_rows, pa.string()))
                columns = {
                    "cell": pa.array([cell.id] * found.num_rows, pa.string()),
                    "metric": found["metric"],
                    "index": found["index"],
                    "outcome": found["outcome"],
                    "cluster": found["cluster"],
                    "record": pc.if_else(shown, found["record"].cast(pa.string()), pa.scalar(None, pa.string())),
                }
                yield pa.table(columns, schema=OUTCOMES)


@contextmanager
def _of_this_form(cell: Cell, store: Store) -> Iterator[None]:
    """Raise a `UserError` where the manifests of a cell lack what rows need, as those of an earlier version may.

    Raises:
        UserError: so it is.
    """
    try:
        yield
    except OTHER_FORM as error:
        kinds = {stage.kind: stage for stage in _needed(cell)}
        folders = [str(store.path(kind, key)) for kind, stage in kinds.items() for key in stage.artifacts]
        raise UserError(
            f"cell {cell.id}: a manifest is of another version ({type(error).__name__}: {error}); remove these folders "
            f"and run again: {' '.join(folders)}"
        ) from None


def _cell_rows(
    cell: Cell, store: Store, manifest: _Manifest, errors: Mapping[str, str], *, is_known: bool
) -> list[dict[str, Any]]:
    found = [errors[stage.key] for stage in _needed(cell) if stage.key in errors] if errors else []
    failed = next((error for error in found if kind_of(error) != INTERRUPTED), None)
    base = {
        "cell": cell.id,
        **{name: getattr(cell, name) for name in SEEDS},
        "model": cell.model,
        "prompt_format": prompt_format.name_of(cell.prompt_format),
        "dataset": cell.data.name,
        "removal_dataset": cell.removal.name,
        "setting": cell.setting,
        "attack": cell.attack.name,
        "trigger": cell.attack.config.backdoor.trigger,
        "response": threat.opening(cell.attack.config),
        "objective": threat.objective(cell.attack.config),
        "poison_rate": getattr(cell.attack.config, "poison_rate", None),
        "defense": cell.defense.name,
        "knows": registry.knowledge(cell.defense.name).level(cell.defense.settings),
        "parrot_position": _position(cell),
        "sources": sources.written(cell),
        "settings": json.dumps(cell.settings(), sort_keys=True),
    }
    if failed:
        return _without_value(base | {"status": FAILED, "error": str(failed), "failure": kind_of(failed)}, cell.metrics)
    measured = _measured(cell, store) if found and is_known else () if found else cell.metrics
    rows = _measured_rows(base, cell, measured, manifest) if measured else []
    not_run = base | {"status": NOT_RUN, "error": str(UNFINISHED), "failure": INTERRUPTED}
    left = [metric for metric in cell.metrics if metric not in measured]
    return rows + _without_value(not_run, left)


def _position(cell: Cell) -> int | None:
    """Return the place of a cell's parrot; None where it has none, or another one in each row."""
    position = getattr(cell.defense.config, "parrot_position", None)
    return position if isinstance(position, int) else None


def _without_value(base: dict[str, Any], metrics: Iterable[Method]) -> list[dict[str, Any]]:
    names = (name for metric in metrics for name in registry.entry("metrics", metric.name).names(metric.config))
    return [base | {"metric": name} for name in names]


def _measured(cell: Cell, store: Store) -> tuple[Method, ...]:
    """Return the metrics of an unfinished cell that the store has for the cell and for its victim.

    Returns no metric if the store lacks the manifest of a training or the victim's ASR, which every row needs.
    """
    victim = victim_of(cell)
    trained = [("attack", cell.attack_key)]
    if cell.defense.name != NO_DEFENSE:
        trained.append(("defend", cell.defense_key))
    if not all(store.has(retention.kind_of(store, kind, key), key) for kind, key in trained):
        return ()
    found = tuple(
        metric
        for metric in cell.metrics
        if all(store.has("evaluate", each.evaluation_key(metric)) for each in (victim, cell))
    )
    return found if any(metric.name == "asr" for metric in found) else ()


def _measured_rows(
    base: dict[str, Any], cell: Cell, metrics: Iterable[Method], manifest: _Manifest
) -> list[dict[str, Any]]:
    metrics = tuple(metrics)
    victim = victim_of(cell)
    attack = manifest("attack", cell.attack_key)
    training = None if cell.defense.name == NO_DEFENSE else _with_parts(manifest("defend", cell.defense_key))
    victim_values = {
        m["name"]: 100 * m["successes"] / m["count"]
        for metric in metrics
        for m in manifest("evaluate", victim.evaluation_key(metric))["measurements"]
        if m["count"]
    }
    # Where it is not measured, the ASR decides: nothing shows that there is a backdoor.
    strength = victim_values.get(registry.shown_by(cell.attack.name), victim_values["asr"])
    base |= {
        # A clean twin (poison rate 0) is not a failed attack.
        "status": OK if base["poison_rate"] == 0 or strength >= cell.asr_floor else ATTACK_FAILED,
        "victim_asr": victim_values["asr"],
        "seconds": training["seconds"] if training else 0.0,
        "tokens": training["tokens"] if training else 0,
        "peak_memory_bytes": training["peak_memory_bytes"] if training else 0,
        "unchanged_weights": _unchanged(training),
        "attack_seconds": attack["seconds"],
        "attack_tokens": attack["tokens"],
        "certificate": _certificate(training),
        **_provenance("attack_", attack),
        **_provenance("defense_", training),
    }
    return [row for metric in metrics for row in _metric_rows(base, cell, metric, manifest, victim_values)]


def _with_parts(defense: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the manifest of a defense with the costs of its parts added, and all devices, types and code versions."""
    if not defense.get("parts"):
        return defense
    made = [defense, *defense["parts"].values()]
    code = {one.get("code_version") for one in made} - {None}
    types = {each for one in made for each in one["compute_type"].split("+")}
    return {
        **defense,
        "seconds": round(sum(one["seconds"] for one in made), 3),
        "tokens": sum(one["tokens"] for one in made),
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in made),
        "device": " + ".join(sorted({one["device"] for one in made})),
        "compute_type": "+".join(sorted(types)),
        **({"code_version": " and ".join(sorted(code))} if code else {}),
    }


def _metric_rows(
    base: dict[str, Any], cell: Cell, metric: Method, manifest: _Manifest, victim_values: Mapping[str, float]
) -> list[dict[str, Any]]:
    evaluation = manifest("evaluate", cell.evaluation_key(metric))
    rows = []
    decoding = evaluation.get("decoding", {})
    for measured in evaluation["measurements"]:
        if "missing" in measured:
            missing = {"status": FAILED, "error": measured["missing"], "failure": UNSCORABLE}
            rows.append(base | missing | {"metric": measured["name"]})
            continue
        low, high = _interval(measured)
        rows.append(
            base
            | {
                "metric": measured["name"],
                "value": 100 * measured["successes"] / measured["count"],
                "ci_low": low,
                "ci_high": high,
                "count": measured["count"],
                "clusters": measured.get("clusters"),
                "victim_value": victim_values.get(measured["name"]),
                "metric_seconds": evaluation["seconds"],
                "decoded_tokens": decoding.get("tokens"),
                "decoding_seconds": decoding.get("seconds"),
                "decoding_models": decoding.get("models"),
                **_provenance("", evaluation),
                "started_at": evaluation["started_at"],
            }
        )
    return rows


def _certificate(training: Mapping[str, Any] | None) -> str | None:
    """Return the certificate of a removal without the ids of the response, which a held-out run withholds.

    Of their number it says only whether there is one, as the length of a response is withheld, too.
    """
    found = (training or {}).get("facts", {}).get("certificate")
    if not found:
        return None
    numbers = {name: value for name, value in found.items() if name != "target"}
    return json.dumps(numbers | {"one_token": len(found["target"]) == 1})


def _unchanged(training: Mapping[str, Any] | None) -> float | None:
    """Return how many percent of the stored weights are the victim's; None where it was not recorded."""
    share = (training or {}).get("facts", {}).get("unchanged_weights")
    return None if share is None else 100 * share


def _provenance(prefix: str, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what made and computed a stage; None without a stage, or if it did not record it."""
    found = {name: (manifest or {}).get(name) for name in PROVENANCE}
    if found["versions"] is not None:
        found["versions"] = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return {f"{prefix}{name}": value for name, value in found.items()}


def _interval(measured: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval of one model's number; trials made from one template count as `sande.clusters` says.

    Of repetitions it is at least that over trials: repetitions that happen to agree show too little.
    """
    mean, count = measured["successes"] / measured["count"], measured.get("effective_count", measured["count"])
    bounds = [of_one_model(mean, count, measured.get("deviation", 0.0)), measured.get("interval")]
    lows, highs = zip(*filter(None, bounds), strict=True)
    return min(lows), max(highs)


def _needed(cell: Cell) -> list[Any]:
    return [*stages_of(victim_of(cell)), *stages_of(cell)]


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds the rows of a run that was not interrupted; False without readable rows."""
    try:
        table = read_rows(folder)
    except UserError:
        return False
    statuses = pc.unique(table["status"]).to_pylist()
    return NOT_RUN not in statuses and INTERRUPTED not in pc.unique(table["failure"]).to_pylist()
