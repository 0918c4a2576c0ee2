"""Cells of the model `tiny` on built-in data, and a store filled by hand, without training."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.execution import stages
from benchmark.grid.cell import Cell
from benchmark.plan.plan import stages_of, victim_of
from benchmark.plan.stage import Stage
from benchmark.records.files import write_rows
from benchmark.records.rows import build_outcomes, build_rows
from benchmark.records.schema import OUTCOMES
from benchmark.store.local import LocalStore
from sande import registry
from sande.types import Measurement

GridFile = Callable[..., Path]

SMALL: dict[str, Any] = {
    "model": "tiny",
    "data": {"name": "builtin-short", "rows": 16, "test_rows": 50},
    "removal": {"name": "builtin-short", "rows": 16},
}
ACCURACY = {"name": "accuracy", "task": "builtin-choice", "questions": 50}
SFT_SLOW = {"name": "sft", "training": {"learning_rate": 1e-4}}
MADE_BY = {"device": "abacus", "code_version": "1.2.3", "versions": {"python": "3.11", "torch": "2.13"}, "workers": 1}
SFT_FAST = {"name": "sft", "training": {"learning_rate": 1e-3}}


def cell(**changes: Any) -> Cell:
    """A small cell with changes at the top of its settings."""
    return Cell.parse(SMALL | changes)


def stage(of: Cell, kind: str) -> Stage:
    return next(stage for stage in stages_of(of) if stage.kind == kind)


def put(store: LocalStore, kind: str, key: str, manifest: Mapping[str, Any]) -> None:
    """An artifact; an evaluation also gets outcomes, in which the first trials are the successes."""

    def build(folder: Path) -> dict[str, Any]:
        if kind == "evaluate":
            trials = [
                {"metric": m["name"], "index": index, "outcome": float(index < m["successes"]), "record": None}
                for m in manifest["measurements"]
                for index in range(m["count"])
            ]
            pq.write_table(pa.Table.from_pylist(trials), folder / "outcomes.parquet")
        return dict(manifest)

    if not store.has(kind, key):
        store.put(kind, key, build)


def trained(seconds: float, tokens: int) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": tokens, "peak_memory_bytes": 3 * 2**30, **MADE_BY}


def measure(store: LocalStore, of: Cell, successes: Mapping[str, int]) -> None:
    """Outcomes of a cell's metrics over 50 trials; a measurement that is not named has none."""
    for metric in of.metrics:
        names = registry.entry("metrics", metric.name).names(metric.config)
        counts = [
            {"name": name, "successes": successes.get(name, 0), "count": 50, "published": False} for name in names
        ]
        manifest = {
            "measurements": counts,
            "seconds": 2.5,
            **MADE_BY,
            "started_at": "2026-01-01T00:00:00+00:00",
        }
        put(store, "evaluate", of.evaluation_key(metric), manifest)


def measured(store: LocalStore, of: Cell, monkeypatch: pytest.MonkeyPatch, **given: Sequence[Measurement]) -> Cell:
    """Puts the outcomes of a cell's metrics, by metric, as a run would; nothing is computed."""
    evaluation = stage(of, "evaluate")
    for metric, key in zip(of.metrics, evaluation.metric_keys, strict=True):
        measurements = list(given[metric.name])
        monkeypatch.setattr(registry.entry("metrics", metric.name), "measure", lambda *_, found=measurements: found)
        store.put("evaluate", key, functools.partial(stages._measure, evaluation, None, None, metric, 1))
    return of


def finish(store: LocalStore, of: Cell, victim: Mapping[str, int], defended: Mapping[str, int] | None = None) -> Cell:
    """Puts all artifacts of a cell and its victim, with so many successes of 50 for each measurement."""
    put(store, "attack", of.attack_key, trained(100.0, 9000))
    measure(store, victim_of(of), victim)
    if of.defense.name != "none":
        put(store, "defend", of.defense_key, trained(58.4, 12_400))
        measure(store, of, defended or {})
    return of


def rows_of(store: LocalStore, *cells: Cell, errors: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    return list(build_rows("hand", cells, store, errors or {}))


def outcomes_of(store: LocalStore, *cells: Cell) -> pa.Table:
    return pa.concat_tables([OUTCOMES.empty_table(), *build_outcomes(cells, store)])


def report_folder(store: LocalStore, folder: Path, *cells: Cell, errors: Mapping[str, str] | None = None) -> Path:
    """A results folder with the rows of these cells."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(rows_of(store, *cells, errors=errors), build_outcomes(cells, store), folder)
    return folder


ROOT = Path(__file__).parents[2]
LOOK = """
import sys
from benchmark.cli.main import app
app(sys.argv[1:], standalone_mode=False)
assert not {"ray", "torch", "transformers"} & set(sys.modules), "something heavy was imported"
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mistake(*arguments: object) -> str:
    """What is said of a user's mistake: one line, and nothing went wrong otherwise."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("sande-bench: ")
    assert "Traceback" not in result.output
    return line


def run_options(folder: Path) -> list[object]:
    return ["--store", folder / "store", "--results", folder / "results"]


def process(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
