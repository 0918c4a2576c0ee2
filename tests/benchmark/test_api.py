"""The Python API computes what a grid's cell computes; a grid runs as a function, and its rows are a data frame."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import benchmark
import sande
from benchmark.execution import stages
from benchmark.grid.cell import Cell
from benchmark.records.schema import OUTCOMES, SCHEMA
from benchmark.store.local import LocalStore
from sande.errors import UserError
from sande.inference import vllm
from sande.models import loading
from tests.benchmark.helpers import ACCURACY, SMALL, GridFile, cell, finish, stage

ROOT = Path(__file__).parents[2]
SHORT = {"max_steps": 3, "batch_size": 4}
ATTACK = {"poison_rate": 0.5, "training": SHORT}
DEFENSES: dict[str, dict[str, Any]] = {
    "osft": {"training": SHORT},
    "sande_p": {"simulate": SHORT, "eliminate": SHORT},
    "fine_mixing": {"training": SHORT},
    "clean_decoding": {},
}


def by_stages(of: Cell, store: LocalStore, *kinds: str) -> None:
    for kind in kinds:
        one = stage(of, kind)
        if kind == "evaluate":
            stages.evaluate(one, store, lambda line: None, vllm.BUILT_IN)
        elif not store.has(kind, one.key):
            stages.train(one, store, lambda trainer: trainer, lambda line: None, 0, interval=600)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a model, those of its guard's reference included."""
    lm = loading.load_folder(folder, torch.float32)
    guard = lm.guard.reference.state_dict() if lm.guard else {}
    return {**lm.model.state_dict(), **{f"guard.{name}": weight for name, weight in guard.items()}}


def assert_same_weights(model: sande.Model, folder: Path) -> None:
    own, stored = weights(model.folder), weights(folder)
    assert own.keys() == stored.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in own.items())


@pytest.mark.parametrize("defense", DEFENSES)
def test_the_api_gives_the_bits_of_a_cell(store: LocalStore, defense: str) -> None:
    metrics = ["asr", "asr_sampled", {"name": "accuracy", "questions": 6}]
    of = cell(
        attack_seed=2,
        defense_seed=3,
        attack={"name": "sentence_trigger", **ATTACK},
        defense={"name": defense, **DEFENSES[defense]},
        metrics=metrics,
    )
    by_stages(of, store, "attack", "defend", "evaluate")
    quiet: dict[str, Any] = {"cache": store.models, "say": lambda line: None}
    victim = sande.attack("tiny", "sentence_trigger", data=SMALL["data"], seed=2, **quiet, **ATTACK)
    assert_same_weights(victim, store.read("attack", of.attack_key))
    assert victim.facts["poisoned_ids"] == store.manifest("attack", of.attack_key)["facts"]["poisoned_ids"]
    repaired = sande.defend(victim, defense, removal=SMALL["removal"], seed=3, **quiet, **DEFENSES[defense])
    assert_same_weights(repaired, store.read("defend", of.defense_key))
    found = sande.measure(repaired, metrics, cache=store.models)
    for key in of.evaluation_keys:
        rows = pq.read_table(store.read("evaluate", key) / "outcomes.parquet").to_pylist()
        for name in {row["metric"] for row in rows}:
            assert list(found[name].outcomes) == [row["outcome"] for row in rows if row["metric"] == name]
            records = [row["record"] for row in rows if row["metric"] == name]
            assert [json.dumps(record) for record in found[name].records] == [r for r in records if r is not None]


def test_a_grid_runs_as_a_function_and_its_rows_are_a_frame(
    grid_file: GridFile, store: LocalStore, tmp_path: Path
) -> None:
    grid = grid_file(metrics=["asr", ACCURACY], sweep={"defense": ["none", "sft"]})
    for defense in ("none", "sft"):
        of = cell(defense=defense, metrics=["asr", ACCURACY])
        finish(store, of, {"asr": 50, "builtin-choice": 20}, {"asr": 7, "builtin-choice": 21})
    lines: list[str] = []
    finished = benchmark.run(grid, store=store.root, results=tmp_path / "results", say=lines.append)
    assert (finished.cells, finished.failed, finished.interrupted) == (2, 0, False)
    assert "2 cells" in lines[0]
    folder = tmp_path / "results" / finished.name
    rows = benchmark.results(folder)
    assert rows[rows.metric == "asr"].set_index("defense").value.to_dict() == {"none": 100.0, "sft": 14.0}
    outcomes = benchmark.results(folder, outcomes=True)
    assert set(outcomes.cell) == set(rows.cell)


def test_an_older_folder_has_the_columns_of_today() -> None:
    folder = ROOT / "results/published/smollm2"
    assert "attack_seed" not in pq.read_schema(folder / "rows.parquet").names
    rows = benchmark.results(folder)
    assert set(rows.attack_seed) == {0}
    assert list(rows.columns) == SCHEMA.names
    assert list(benchmark.results(folder, outcomes=True).columns) == OUTCOMES.names


def test_a_folder_without_results_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no rows\.parquet; run the grid"):
        benchmark.results(tmp_path)
