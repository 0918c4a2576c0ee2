"""A group of workers on machines with a remote store begins from one checkpoint, whatever is left on their disks."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmark.io import remote as io_remote
from benchmark.store.checkpoints import Sent
from benchmark.store.remote import open_store
from sande.errors import UserError
from sande.training.checkpoints import Checkpoints
from tests.sande.training.two_machines import together

KEY, LAYOUT = "k" * 64, "2-workers-bf16"


@pytest.fixture(autouse=True)
def _empty() -> None:
    """Empty the remote store, of which each worker has a copy."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def machine(tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch, said: list[str] | None = None) -> Sent:
    """Return the checkpoints of the stage as the worker of this rank has them, on its own disk."""
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / f"disk{rank}"))
    monkeypatch.setattr(io_remote, "FIRST_PAUSE", 0.001)
    kept = open_store("memory://shared/store").checkpoints("attack", KEY, ([] if said is None else said).append)
    assert isinstance(kept, Sent)
    return kept


def lose(kept: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every snapshot be lost on its way."""

    def refused(*_: object) -> None:
        raise UserError("the machine is gone")

    monkeypatch.setattr(kept._remote, "send", refused)


def begun(kept: Sent) -> str | None:
    """Return the name of the checkpoint that a worker begins from, None for none."""
    kept.restore()
    found = Checkpoints(kept.folder, 0.0).training("attack", LAYOUT, {}).latest(nn.Linear(1, 1))
    return Path(found).name if found else None


def write(kept: Sent, step: int, rank: int) -> None:
    """Write a checkpoint as the Trainer does on a worker, and let the store know of it."""
    progress = Checkpoints(kept.folder, 0.0, kept.saved).training("attack", LAYOUT, {})
    folder = progress.folder / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)  # the other worker may be on this machine
    (folder / f"rng_state_{rank}.pth").write_text("state")
    if rank == 0:
        (folder / "model.safetensors").write_text("weights")
    progress.complete(step)


@pytest.mark.parametrize("disks", [1, 2])
def test_workers_begin_from_a_checkpoint_that_was_never_sent(
    disks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(rank: int) -> Any:
        kept = machine(tmp_path, rank % disks, monkeypatch)
        lose(kept, monkeypatch)
        write(kept, 10, rank)
        return begun(machine(tmp_path, rank % disks, monkeypatch)), len(list(kept.folder.glob("*/*/*/model*")))

    assert together(do, tmp_path / "meeting") == [("checkpoint-10", 1)] * 2


def test_after_a_resumption_all_begin_again_from_what_came_furthest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = machine(tmp_path, 2, monkeypatch)
    write(gone, 10, rank=0)
    gone.close(done=False)  # waits until it is sent

    def do(rank: int) -> Any:
        kept = machine(tmp_path, rank, monkeypatch)
        lose(kept, monkeypatch)
        first = begun(kept)
        write(kept, 20, rank)
        return first, begun(machine(tmp_path, rank, monkeypatch)), len(list(kept.folder.glob("*/*/*/model*")))

    assert together(do, tmp_path / "meeting") == [("checkpoint-10", "checkpoint-20", 2)] * 2
