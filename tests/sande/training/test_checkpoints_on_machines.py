"""Workers on machines with disks of their own agree on a checkpoint that all of them have, or begin anew."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sande.training import checkpoints
from sande.training.checkpoints import Checkpoints
from tests.sande.training.two_machines import together

LAYOUT = "2-workers-zero3-fp32"
SHARD = "global_step/bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
COMMON = {"trainer_state.json": b"state", "latest": b"global_step", "empty": b""}


def disk(tmp_path: Path, rank: int) -> Path:
    return tmp_path / f"disk{rank}"


def trained(tmp_path: Path, rank: int, steps: tuple[int, ...], sharded: bool = True) -> None:
    """Write checkpoints as a group does: all that is common on the disk of rank 0, its shard on that of each."""
    progress = Checkpoints(disk(tmp_path, rank), 0.0).training("attack", LAYOUT, {"poisoned": [rank + 3]})
    for step in steps:
        files = {SHARD.format(rank): f"shard {rank}".encode()} if sharded else {f"rng_state_{rank}.pth": b"rng"}
        for name, content in (files | (COMMON if rank == 0 else {})).items():
            path = progress.folder / f"checkpoint-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        progress.complete(step)


def resumed(tmp_path: Path, rank: int) -> tuple[str | None, dict[str, Any], list[str]]:
    """Return the name of the checkpoint that a new worker resumes from, its facts, and what it says."""
    said: list[str] = []
    facts: dict[str, Any] = {}
    kept = Checkpoints(disk(tmp_path, rank), 0.0, say=said.append)
    found = kept.training("attack", LAYOUT, facts).latest(nn.Linear(1, 1))
    return Path(found).name if found else None, facts, said


def checkpoint(tmp_path: Path, rank: int, step: int) -> Path:
    return disk(tmp_path, rank) / "1-attack" / LAYOUT / f"checkpoint-{step}"


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("sharded", [True, False])
def test_workers_take_the_mark_of_rank_0_and_get_what_all_need(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_CHUNK", 2)  # bytes, so that a file is more than one chunk

    def do(rank: int) -> Any:
        trained(tmp_path, rank, (10, 20), sharded)
        return resumed(tmp_path, rank)

    assert together(do, tmp_path / "meeting") == [("checkpoint-20", {"poisoned": [3]}, [])] * 2
    there = content(checkpoint(tmp_path, 1, 20))
    own = {SHARD.format(1): b"shard 1"} if sharded else {"rng_state_0.pth": b"rng", "rng_state_1.pth": b"rng"}
    mark = (checkpoint(tmp_path, 0, 20) / "complete.json").read_bytes()
    assert there == COMMON | own | {"complete.json": mark}, "not the shard of rank 0"


@pytest.mark.parametrize(
    ("gone", "then", "sentence"),
    [
        ((20,), "checkpoint-10", "shard of checkpoint-20 on its machine; it goes on from checkpoint-10"),
        ((10, 20), None, "shard of checkpoint-20, checkpoint-10 on its machine; it begins anew"),
    ],
)
def test_a_checkpoint_whose_shard_was_lost_with_a_machine_is_left_out(
    gone: tuple[int, ...], then: str | None, sentence: str, tmp_path: Path
) -> None:
    def do(rank: int) -> Any:
        trained(tmp_path, rank, (10, 20))
        if rank == 1:
            for step in gone:
                (checkpoint(tmp_path, 1, step) / SHARD.format(1)).unlink()
        return resumed(tmp_path, rank)

    (first, _, said), (second, _, silent) = together(do, tmp_path / "meeting")
    assert (first, second) == (then, then)
    assert said == [f"1-attack: a worker does not have its {sentence}"]
    assert silent == []
    left = [step for step in (10, 20) if checkpoint(tmp_path, 0, step).exists()]
    assert left == [step for step in (10, 20) if step not in gone], "the training writes it again"


def test_a_checkpoint_of_another_process_at_the_same_step_is_replaced(tmp_path: Path) -> None:
    def do(rank: int) -> Any:
        trained(tmp_path, rank, (10,))
        if rank == 1:
            (checkpoint(tmp_path, 1, 10) / "complete.json").write_text('{"facts": {}, "files": {}}')
            (checkpoint(tmp_path, 1, 10) / "trainer_state.json").write_bytes(b"other")
        return resumed(tmp_path, rank)

    assert [found for found, *_ in together(do, tmp_path / "meeting")] == ["checkpoint-10"] * 2
    assert (checkpoint(tmp_path, 1, 10) / "trainer_state.json").read_bytes() == b"state"


def test_on_a_disk_that_both_see_nothing_is_written(tmp_path: Path) -> None:
    disk(tmp_path, 0).mkdir()
    disk(tmp_path, 1).symlink_to(disk(tmp_path, 0))

    def before(rank: int) -> None:
        trained(tmp_path, rank, (10,))

    together(before, tmp_path / "first")
    times = {path: path.stat().st_ctime_ns for path in disk(tmp_path, 0).rglob("*")}
    assert {SHARD.format(0), SHARD.format(1)} < json.loads((checkpoint(tmp_path, 0, 10) / "complete.json").read_text())[
        "files"
    ].keys()
    both = together(lambda rank: resumed(tmp_path, rank), tmp_path / "second")
    assert both == [("checkpoint-10", {"poisoned": [3]}, [])] * 2
    assert {path: path.stat().st_ctime_ns for path in disk(tmp_path, 0).rglob("*")} == times


def test_workers_get_the_result_of_a_finished_training(tmp_path: Path) -> None:
    def do(rank: int) -> Any:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, 5.0 + rank)
        Checkpoints(disk(tmp_path, rank), 0.0).training("attack", LAYOUT, {"steps": rank}).finish(model)
        fresh = nn.Linear(2, 2)
        facts: dict[str, Any] = {}
        done = Checkpoints(disk(tmp_path, rank), 0.0).training("attack", LAYOUT, facts).finished(fresh)
        return done, facts, bool(torch.all(fresh.weight == 5.0))

    assert together(do, tmp_path / "meeting") == [(True, {"steps": 0}, True)] * 2
