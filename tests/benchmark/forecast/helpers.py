"""Helpers of the tests of forecasts: stages with seconds put into a store, and plans of single stages."""

from typing import Any

import pytest

from benchmark.forecast.cost import Piece, pieces
from benchmark.forecast.measured import OVERHEAD
from benchmark.forecast.wall_time import predict
from benchmark.grid.cell import Cell
from benchmark.grid.resources import Resources
from benchmark.plan.plan import Plan, stages_of
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import cell, put, stage

GIB = 2**30
ABACUS = "Abacus 9000 (2 threads)"
H100 = "NVIDIA H100 80GB HBM3"
BESIDE = OVERHEAD.around + OVERHEAD.start
SFT = {"name": "sft", "training": {"max_steps": 10}}


def measured(store: LocalStore, of: Cell, device: str = ABACUS, **more: Any) -> None:
    """Put all stages of a cell as if they had been run, an attack of 100 s, a defense of 30 s, each metric of 2 s."""
    for each in stages_of(of):
        base = {"kind": each.kind, "settings": dict(each.settings), "device": device, "peak_memory_bytes": GIB, **more}
        if each.kind != "evaluate":
            put(store, each.kind, each.key, base | {"seconds": {"attack": 100.0, "defend": 30.0}[each.kind]})
        for metric, key in zip(of.metrics, each.metric_keys, strict=False):
            names = [metric.name, f"{metric.name}_starts_with".replace("rate_", "")]
            names = [metric.config.task] if metric.name == "accuracy" else names
            measurements = [{"name": name, "successes": 1, "count": 2, "published": False} for name in names]
            put(store, "evaluate", key, base | {"seconds": 2.0, "measurements": measurements})


def only(kind: str, of: Cell) -> Plan:
    """Return a plan of nothing but one stage of a cell."""
    one = stage(of, kind)
    return Plan((of,), {one.key: one}, frozenset(one.needs))


def seconds(plan: Plan, store: LocalStore, machine: str | None = None) -> float:
    """Return the seconds of all stages on one GPU, less the overhead of each."""
    made = predict(plan, store, Resources(), 1, machine)
    assert made.wall == pytest.approx(made.busy + BESIDE)
    return made.busy - len(plan.missing) * OVERHEAD.stage


def basis(plan: Plan, store: LocalStore, machine: str | None = None) -> dict[str, int]:
    return dict(predict(plan, store, Resources(), 1, machine).basis)


def trains(name: str) -> dict[str, Any]:
    return {"name": name, "training": {"max_steps": 10}}


def only_piece(name: str) -> Piece:
    of = cell(defense=trains(name))
    (piece,) = pieces(stage(of, "defend"), of)
    return piece


def timed(store: LocalStore, name: str, seconds: float, seed: int = 0, device: str = ABACUS, **more: Any) -> None:
    one = stage(cell(seed=seed, defense=trains(name)), "defend")
    manifest = {"kind": "defend", "settings": dict(one.settings), "device": device, "seconds": seconds, **more}
    put(store, "defend", one.key, manifest)
