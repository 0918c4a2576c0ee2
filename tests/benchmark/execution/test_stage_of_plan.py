"""A process computes what was planned, and with all of its group or not at all."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.execution import stages
from benchmark.plan.plan import stages_of
from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import cell, stage

CHECK = "import sys; from benchmark.plan.stage import Stage; Stage.from_json(sys.stdin.read()).check()"


def test_rows_that_changed_since_the_plan_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    rows = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(80)]
    written = tmp_path / "mine.jsonl"
    written.write_text("\n".join(map(json.dumps, rows)))
    of = cell(data={"name": "mine", "rows": 40, "test_rows": 8}, defense="sft", metrics=["asr"])
    attack = stages_of(of)[0].to_json()

    def refused(text: str) -> str:  # as a process does that gets the stage as text
        done = subprocess.run([sys.executable, "-c", CHECK], input=text, capture_output=True, text=True)
        return done.stderr.strip().rpartition("\n")[2]

    assert refused(attack) == ""
    written.write_text("\n".join(map(json.dumps, [rows[0] | {"output": "Another one."}, *rows[1:]])))
    assert "are not those that the run was planned with; run again" in refused(attack)


def do(one: Stage, store: LocalStore) -> None:
    if one.kind == "evaluate":
        stages.evaluate(one, store, print, "built-in")
    else:
        stages.train(one, store, lambda trainer: trainer, print, 0, interval=600)


@pytest.mark.parametrize("kind", ["attack", "defend", "evaluate"])
def test_a_stage_under_another_key_is_refused(kind: Any, store: LocalStore) -> None:
    planned = stage(cell(defense="sft"), kind)
    planned.check()
    other = Stage(kind, "another", planned.settings, metric_keys=("another",) if kind == "evaluate" else ())
    with pytest.raises(UserError, match="run again"):
        do(other, store)
    assert not list(store.keys(kind))


@pytest.mark.parametrize("sent_before", [False, True], ids=["trains", "only has to be sent"])
def test_all_ranks_train_or_none(store: LocalStore, monkeypatch: pytest.MonkeyPatch, sent_before: bool) -> None:
    """A rank that trains while the first does not would wait in its first sum of gradients, with its GPU."""
    trained: list[int] = []
    monkeypatch.setitem(stages._WORK, "attack", lambda of, kept, run: trained.append(1) or (lambda folder: None))
    if sent_before:  # as that of a remote store, where sending failed before
        monkeypatch.setattr(LocalStore, "put", lambda self, kind, key, build: None)
    said: list[bool] = []

    def of_rank(rank: int, agree: Callable[[bool], bool]) -> None:
        one = stage(cell(), "attack")
        stages.train(one, store, lambda trainer: trainer, print, rank, interval=600, workers=2, agree=agree)

    of_rank(0, lambda value: said.append(value) or value)  # type: ignore[func-returns-value]
    of_rank(1, lambda value: said[0])
    assert (said, len(trained)) == (([False], 0) if sent_before else ([True], 2))
