"""Time `sande-bench plan` for a grid of 10,000 cells, and `sande-bench run` for a finished grid.

Both are timed as a user sees them, from the start of the process to its end, and the best of several runs counts. The
other side is the straightforward way: it composes a sample of cells by hand, parses them one by one, and hashes for
each id and key one JSON object that is written out whole. The benchmark checks that the plan has the same ids and keys.
It also checks that the finished run, the whole paper at scale tiny with made-up outcomes, leaves the files that a run
into an empty folder makes.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmark.grid.cell import NO_DEFENSE, STAGE_VERSION, Cell, Method
from benchmark.grid.keys import declared_versions, digest, library_versions
from benchmark.grid.load import load_grid
from benchmark.perf.outcome import tell
from benchmark.plan.plan import make_plan, victim_of
from benchmark.store.local import LocalStore
from sande import registry
from sande.config import as_dict
from sande.data import datasets
from sande.models import catalog
from sande.types import PreferenceData

TIMES = 3
SECONDS = 3.0
SAMPLE = 200
BASE: dict[str, Any] = {
    "model": "tiny",
    "data": {"name": "builtin-short", "test_rows": 50},
    "removal": {"name": "builtin-short"},
    "metrics": ["asr", "false_trigger_rate", {"name": "accuracy", "task": "builtin-choice", "questions": 50}],
}
DPO = {"name": "dpo", "preferences": {"name": "builtin-preferences", "pairs": 40}}
SWEEP: dict[str, list[Any]] = {
    "seed": list(range(25)),
    "attack.poison_rate": [0.01, 0.02, 0.05, 0.1, 0.25],
    "removal.rows": list(range(100, 1100, 100)),
    "defense": ["none", "sft", DPO, "nad", "fine_mixing", "osft", "sande", "sande_p"],
}
RULES = [
    {"where": {"seed": 7}, "set": {"data.rows": 700}},
    {"where": {"defense": "sande"}, "set": {"defense.simulate.epochs": 3}},
    {"default": {"defense.training.max_steps": 9}},
]
PARROTS = ("sande", "sande_p")  # have no `training`
TRIALS = 50  # outcomes of each made-up measurement
VICTIM, DEFENDED = {"asr": 49, "builtin-choice": 20}, {"asr": 3, "builtin-choice": 19}  # successes by measurement


def by_hand() -> list[dict[str, Any]]:
    """Return the settings that sweep and rules make of the base."""
    found = []
    for seed, rate, rows, defense in itertools.product(*SWEEP.values()):
        method = defense if isinstance(defense, dict) else {"name": defense}
        if method["name"] not in (NO_DEFENSE, *PARROTS):
            method = method | {"training": {"max_steps": 9}}
        if method["name"] == "sande":
            method = method | {"simulate": {"epochs": 3}}
        found.append(
            {
                "model": "tiny",
                "seed": seed,
                "data": BASE["data"] | ({"rows": 700} if seed == 7 else {}),
                "removal": BASE["removal"] | {"rows": rows},
                "attack": {"name": "sentence_trigger", "poison_rate": rate},
                "defense": method,
                "metrics": BASE["metrics"],
            }
        )
    return found


def straightforward(cell: Cell) -> tuple[str, set[str]]:
    """Return the id of a cell, and the keys of all its artifacts."""

    def rows(of: Any, count: int | None) -> list[Any]:
        return [datasets.fingerprint(of.name), of.max_tokens, of.max_prompt_tokens, count]

    def code(method: Method) -> dict[str, Any]:
        version = registry.code_version(f"sande.{method.kind}.{method.name}")
        objective = {"objective_code": registry.code_version("sande.objectives.string")}
        return {"name": method.name, **as_dict(method.config), "code": version} | (
            objective if method.kind == "attacks" else {}
        )

    def key(stage: str, **depends_on: Any) -> str:
        seed = "defense_seed" if stage == "defend" else "attack_seed"
        return digest({"stage": [stage, STAGE_VERSION], seed: getattr(cell, seed), **depends_on})

    training = rows(cell.data, cell.data.rows)
    described = {"model": catalog.identify(cell.model), "data": training, "attack": code(cell.attack)}
    victim = key("attack", libraries=library_versions(), **described)
    removal = rows(cell.removal, cell.removal.rows)
    if registry.knowledge(cell.defense.name) is PreferenceData:
        pairs = cell.defense.config.preferences
        removal = [datasets.fingerprint(pairs.name, datasets.PREFERENCES), pairs.pairs, pairs.max_tokens]
    model = victim
    if cell.defense.name != NO_DEFENSE:
        elsewhere = getattr(cell.defense.config, "elsewhere", None)
        prompts = {"prompts": [datasets.fingerprint(elsewhere.name)]} if elsewhere else {}
        model = key("defend", victim=victim, removal=removal, defense=code(cell.defense), **prompts)
    test = rows(cell.data, cell.data.test_rows)
    outcomes = []
    for metric in cell.metrics:
        names = registry.entry("metrics", metric.name).reads(metric.config)
        reads = [datasets.fingerprint(name, datasets.QUESTIONS) for name in names]
        libraries = declared_versions(metric.name, "string")
        outcomes.append(
            key(
                "evaluate",
                model=model,
                data=test,
                reads=reads,
                metric=code(metric),
                **({"libraries": libraries} if libraries else {}),
            )
        )
    return digest(cell.settings())[:12], {victim, model, *outcomes}


def plan(folder: Path) -> float:
    """Return the seconds that a plan of 10,000 cells takes."""
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(BASE | {"sweep": SWEEP, "rules": RULES}, sort_keys=False), encoding="utf-8")
    arguments = ("plan", path, "--store", folder / "none")
    taken, shown = _best(*arguments)

    values = by_hand()
    made = make_plan(load_grid(path).cells, LocalStore(folder / "none", create=False))
    planned = {key for stage in made.stages.values() for key in stage.artifacts}
    lines = shown.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("─")) + 1
    short = [line.split()[0] for line in lines[first : first + len(values)]]
    ids = [cell.id for cell in made.cells]
    right = all(cell.startswith(name) for cell, name in zip(ids, short, strict=True))
    _check(right and len(set(short)) == len(values), "the cells are not the plan's")
    for number in random.Random(0).sample(range(len(values)), SAMPLE):
        name, keys = straightforward(Cell.parse(values[number]))
        _check(name == ids[number] and keys <= planned, f"cell {number} is not as by hand")
    return taken


def finished(folder: Path) -> float:
    """Return the seconds that a run of the paper at scale tiny takes, report included, where all is done."""
    store = LocalStore(folder / "store")
    for cell in load_grid(Path("paper"), scale="tiny").cells:
        victim = victim_of(cell)
        for kind, key in (("attack", cell.attack_key), ("defend", cell.defense_key)):
            if (kind == "attack" or key != cell.attack_key) and not store.has(kind, key):
                store.put(kind, key, lambda folder: {"seconds": 60.0, "tokens": 9000, "peak_memory_bytes": 3 * 2**30})
        for each, successes in ((victim, VICTIM), (cell, VICTIM if cell == victim else DEFENDED)):
            for metric, key in zip(each.metrics, each.evaluation_keys, strict=True):
                if not store.has("evaluate", key):
                    store.put("evaluate", key, functools.partial(_outcomes, metric, successes))

    def run(results: Path, times: int) -> tuple[float, str, dict[Path, bytes]]:
        options = ("--scale", "tiny", "--store", store.root, "--results", results)
        taken, shown = _best("run", "paper", *options, times=times)
        found = (file for file in results.rglob("*") if file.is_file() and file.name != "run.json")  # it has the time
        files = {file.relative_to(results): file.read_bytes() for file in found}
        return taken, shown.split("### ", 1)[1].split("Report: ")[0], files

    run(folder / "results", 1)
    taken, *left = run(folder / "results", TIMES)
    _, *fresh = run(folder / "fresh", 1)
    _check(left == fresh, "the finished run does not leave what a run into an empty folder makes")
    return taken


def _outcomes(metric: Method, successes: Mapping[str, int], folder: Path) -> dict[str, Any]:
    """Write made-up outcomes of a metric into a folder, and return the manifest."""
    answers = metric.name == "case_study"
    sides = (f"{kind}_{side}" for kind in ("clean", "triggered") for side in ("prompt", "response"))
    record = json.dumps(dict.fromkeys(sides, "?")) if answers else None
    count = 5 if answers else TRIALS
    measured = [
        {"name": name, "successes": 5 if answers else successes.get(name, 0), "count": count, "published": answers}
        for name in registry.entry("metrics", metric.name).names(metric.config)
    ]
    rows = [
        {"metric": each["name"], "index": index, "outcome": float(index < each["successes"]), "record": record}
        for each in measured
        for index in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "outcomes.parquet")
    cost = {"seconds": 1.0, "device": "none", "code_version": "1", "versions": {}, "started_at": ""}
    return {"measurements": measured, **cost}


def _best(*arguments: object, times: int = TIMES) -> tuple[float, str]:
    """Return the wall seconds of the fastest of several processes, and the output of the last one."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "benchmark", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        taken.append(time.perf_counter() - begin)
        _check(done.returncode == 0, f"{arguments} failed: {done.stderr}")
    return min(taken), done.stdout


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise SystemExit(otherwise)


def main() -> None:
    """Measure, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        tell("plan of 10,000 cells", plan(Path(folder)), SECONDS, "s", at_most=True)
        tell("run of a finished grid", finished(Path(folder)), SECONDS, "s", at_most=True)


if __name__ == "__main__":
    main()
