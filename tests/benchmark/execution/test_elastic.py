"""Checkpoints that another number of workers continues from, and what a stage says of it."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmark.execution.elastic import HISTORY, ElasticCheckpoints, worker_changes

MODEL = nn.Linear(1, 1)


def saved(folder: Path, layout: str, step: int, facts: dict[str, Any], whole: bool = True) -> Path:
    """A checkpoint of the first training, as its Trainer and its mark leave it."""
    progress = ElasticCheckpoints(folder, 0.0).training("attack", layout, facts)
    checkpoint = progress.folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("w")
    progress.complete(step)
    if not whole:
        (checkpoint / "weights").unlink()
    return checkpoint


def resumed(folder: Path, layout: str, facts: dict[str, Any]) -> str | None:
    return ElasticCheckpoints(folder, 0.0).training("attack", layout, facts).latest(MODEL)


def entry(step: int, workers: int, training: str = "1-attack") -> dict[str, Any]:
    return {"training": training, "from_step": step, "workers": workers}


@pytest.fixture
def one_of_eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Checkpoints of eight workers."""
    facts = {HISTORY: [entry(0, 8)], "poisoned_ids": [1]}
    saved(tmp_path, "8-workers-fp32", 10, facts)
    saved(tmp_path, "8-workers-fp32", 20, facts)
    return tmp_path


def test_another_number_of_workers_takes_the_last_checkpoint_and_says_so(one_of_eight: Path) -> None:
    facts: dict[str, Any] = {}
    assert resumed(one_of_eight, "1-workers-fp32", facts) == str(
        one_of_eight / "1-attack" / "8-workers-fp32" / "checkpoint-20"
    )
    assert facts == {HISTORY: [entry(0, 8), entry(20, 1)], "poisoned_ids": [1]}
    assert worker_changes(facts) == "8 from step 0 of 1-attack; 1 from step 20 of 1-attack"


def test_its_own_checkpoints_go_where_its_layout_says(one_of_eight: Path) -> None:
    progress = ElasticCheckpoints(one_of_eight, 0.0).training("attack", "1-workers-fp32", {})
    progress.latest(MODEL)
    assert progress.folder == one_of_eight / "1-attack" / "1-workers-fp32"


def test_the_checkpoint_that_came_furthest_counts(one_of_eight: Path) -> None:
    further = saved(one_of_eight, "4-workers-fp32", 30, {HISTORY: [entry(0, 8), entry(20, 4)]})
    facts: dict[str, Any] = {}
    assert resumed(one_of_eight, "1-workers-fp32", facts) == str(further)
    assert [each["workers"] for each in facts[HISTORY]] == [8, 4, 1]


@pytest.mark.parametrize("layout", ["1-workers-bf16", "1-workers-zero2-fp32"])
def test_another_precision_or_shards_do_not_resume(one_of_eight: Path, layout: str) -> None:
    facts: dict[str, Any] = {}
    assert resumed(one_of_eight, layout, facts) is None
    assert facts == {HISTORY: [entry(0, 1)]}


def test_the_same_number_of_workers_is_no_change(tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    resumed(tmp_path, "1-workers-fp32", facts)
    saved(tmp_path, "1-workers-fp32", 5, facts)
    again: dict[str, Any] = {}
    resumed(tmp_path, "1-workers-fp32", again)
    assert again == {HISTORY: [entry(0, 1)]}
    assert worker_changes(again) is None


def test_a_change_between_two_trainings_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_changes({}) is None
    assert worker_changes({HISTORY: [entry(0, 8), entry(0, 7, "2-afterwards")]}) == (
        "8 from step 0 of 1-attack; 7 from step 0 of 2-afterwards"
    )
