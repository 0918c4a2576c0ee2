"""Measure `sande-bench report` of a million rows: seconds and memory of the whole command, in its own process.

The rows are made up, in the shape of a large study: two models, two data sets, two poison rates, 20 defenses (seven of
them, six at three learning rates each, and none) and 625 seeds, ten measurements a cell; some attacks and cells failed.
The benchmark compares the report with means that it computes from the rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark.grid.cell import NO_DEFENSE, SEEDS, Cell
from benchmark.perf.outcome import tell
from benchmark.records.files import write_tables
from benchmark.records.schema import ATTACK_FAILED, FAILED, OK, ROW_GROUP, SCHEMA
from sande import registry

COPIES = 625  # seeds, of attack and defense alike
SECONDS, GIGABYTES = 15, 2
LEARNING_RATES = (1e-5, 2e-5, 4e-5)
DEFENSES: list[dict[str, Any]] = [
    {"name": NO_DEFENSE},
    {"name": "dpo"},
    *(
        {"name": name, stage: {"learning_rate": rate}}
        for name, stage in {
            "sft": "training",
            "nad": "training",
            "fine_mixing": "training",
            "osft": "training",
            "sande_p": "eliminate",
            "sande": "eliminate",
        }.items()
        for rate in LEARNING_RATES
    ),
]
TASKS = ("arc_easy", "arc_challenge", "paper_arc_easy", "paper_arc_challenge")
METRICS: list[Any] = ["asr", "false_trigger_rate", *({"name": "accuracy", "task": task} for task in TASKS)]
SEED_SETTING = '("(?:attack|defense)_seed": )[0-9]+'
COUNT = 1000  # prompts or questions of a measurement
WEAK, BROKEN = 0.02, 0.002  # shares of victims under the floor, and of cells that failed


def cells() -> list[Cell]:
    """Return the cells of one seed: each victim with each defense."""
    return [
        Cell.parse(
            {
                "model": model,
                "data": {"name": data},
                "removal": {"name": data},
                "attack": {"name": "sentence_trigger", "poison_rate": rate},
                "defense": defense,
                "metrics": METRICS,
            }
        )
        for model, data, rate, defense in product(
            ("llama2-7b", "qwen1.5-4b"), ("alpaca", "orca"), (0.05, 0.25), DEFENSES
        )
    ]


def tables(of: list[Cell], seeds: int) -> Iterator[pa.Table]:
    """Yield one table for each seed: the rows of these cells, in the form of `benchmark.records.rows.build_rows`."""
    texts = [json.dumps(cell.settings(), sort_keys=True) for cell in of]
    for seed in range(seeds):
        yield _rows(of, [re.sub(SEED_SETTING, rf"\g<1>{seed}", text) for text in texts], seed)


def _rows(of: list[Cell], settings: list[str], seed: int) -> pa.Table:
    """Return the rows of one seed: cell by cell, each with every metric."""
    random = np.random.default_rng(seed)
    metrics = [name for m in of[0].metrics for name in registry.entry("metrics", m.name).names(m.config)]
    cell, metric = (index.ravel() for index in np.indices((len(of), len(metrics))))
    victims = len(of) // len(DEFENSES)
    victim = np.arange(victims).repeat(len(DEFENSES))  # of each cell
    status = np.where(random.random(victims) < WEAK, ATTACK_FAILED, OK)[victim]
    status = np.where(random.random(len(of)) < BROKEN, FAILED, status)
    undefended = np.array([one.defense.name == NO_DEFENSE for one in of])[cell]
    victim_successes = random.binomial(COUNT, 0.97, (victims, len(metrics)))[victim[cell], metric]
    successes = np.where(undefended, victim_successes, random.binomial(COUNT, 0.4, len(cell)))
    training = random.uniform(100, 1000, len(of))[cell]
    by_cell: dict[str, list[Any]] = {
        "cell": [hashlib.sha256(text.encode()).hexdigest()[:12] for text in settings],
        "error": ["the loss is nan at step 3" if state == FAILED else None for state in status],
        "model": [one.model for one in of],
        "dataset": [one.data.name for one in of],
        "removal_dataset": [one.removal.name for one in of],
        "setting": [one.setting for one in of],
        "attack": [one.attack.name for one in of],
        "trigger": [one.attack.config.backdoor.trigger for one in of],
        "response": [one.attack.config.backdoor.response for one in of],
        "poison_rate": [one.attack.config.poison_rate for one in of],
        "defense": [one.defense.name for one in of],
        "knows": [registry.knowledge(one.defense.name).label for one in of],
        "parrot_position": [getattr(one.defense.config, "parrot_position", None) for one in of],
        "settings": settings,
    }
    measured: dict[str, Any] = {
        "value": 100 * successes / COUNT,
        "ci_low": 100 * successes / COUNT - 2,
        "ci_high": 100 * successes / COUNT + 2,
        "count": np.full(len(cell), COUNT),
        "victim_value": 100 * victim_successes / COUNT,
        "victim_asr": np.where(status == ATTACK_FAILED, 50.0, 97.0)[cell],
        "seconds": np.where(undefended, 0, training),
        "tokens": np.where(undefended, 0, (1000 * training).astype(int)),
        "peak_memory_bytes": np.where(undefended, 0, 2**35),
        "attack_seconds": random.uniform(1000, 2000, victims)[victim[cell]],
        "attack_tokens": np.full(len(cell), 10**7),
        "metric_seconds": random.uniform(10, 100, len(cell)),
        "device": np.full(len(cell), "NVIDIA H100 80GB HBM3"),
        "code_version": np.full(len(cell), "0.1.0+28a5504"),
        "versions": np.full(len(cell), "python 3.11.2, torch 2.13.0, transformers 5.23.0, ray 2.60.0"),
        "started_at": [f"2026-01-{1 + seed % 28:02}T{index // 60 % 24:02}:{index % 60:02}:00+00:00" for index in cell],
    }
    columns: dict[str, pa.Array] = {
        "grid": pa.array(["study"] * len(cell)),
        "grids": pa.array([["study"]] * len(cell)),
        "scale": pa.array([""] * len(cell)),
        "status": pa.array(status[cell]),
        **{name: pa.array(np.full(len(cell), seed)) for name in SEEDS},
        "metric": pa.array(metrics).take(pa.array(metric)),
        **{name: pa.array(values).take(pa.array(cell)) for name, values in by_cell.items()},
        **{name: pa.array(values, mask=(status == FAILED)[cell]) for name, values in measured.items()},
    }
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def write(folder: Path, seeds: int) -> int:
    """Write `rows.parquet`, and return the number of its rows."""
    write_tables(tables(cells(), seeds), SCHEMA, folder / "rows.parquet", ROW_GROUP)
    return int(pq.read_metadata(folder / "rows.parquet").num_rows)


def check(folder: Path) -> None:
    """Check that the report has the mean over the seeds of each victim with each defense.

    Raises:
        AssertionError: a mean differs.
    """
    rows = pq.read_table(folder / "rows.parquet", columns=["settings", "value"], filters=[("metric", "=", "asr")])
    rows = rows.set_column(0, "settings", pc.replace_substring_regex(rows["settings"], SEED_SETTING, ""))
    means = rows.group_by("settings").aggregate([("value", "mean")])["value_mean"]
    reported = pq.read_table(folder / "tables" / "asr.parquet")["value"]
    np.testing.assert_allclose(np.sort(reported.to_numpy()), np.sort(means.to_numpy()))


def main() -> None:
    """Make the rows, report them, check the report, print two lines."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = write(folder, COPIES)
        begin = time.perf_counter()
        command = [sys.executable, "-m", "benchmark", "report", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        check(folder)
    tell(f"report of {rows:,} rows, wall time", seconds, SECONDS, "s", at_most=True)
    tell(f"report of {rows:,} rows, peak memory", peak / 1e9, GIGABYTES, "GB", at_most=True)


if __name__ == "__main__":
    main()
