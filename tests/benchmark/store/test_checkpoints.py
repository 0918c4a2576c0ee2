"""Checkpoints on a remote store: a stage goes on where another machine's was lost, and no failure there ends it."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.io import remote as io_remote
from benchmark.io.remote import Remote
from benchmark.store.checkpoints import LATEST, Kept, Sent
from benchmark.store.local import LocalStore
from benchmark.store.remote import RemoteStore, open_store
from sande.errors import UserError

KEY = "k" * 64
BELOW = f"checkpoints/attack/{KEY}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "one"))
    monkeypatch.setattr(io_remote, "FIRST_PAUSE", 0.001)


@pytest.fixture
def uri() -> str:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return "memory://shared/store"


def write(folder: Path, step: int, seconds: float, content: bytes = b"weights") -> None:
    """A checkpoint as a training leaves it."""
    place = folder / "1-attack/1-bf16" / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(content)
    mark = {"files": {"model.safetensors": len(content)}, "stage_seconds": seconds, "seconds": seconds, "facts": {}}
    (place / "complete.json").write_text(json.dumps(mark))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("*/*/checkpoint-*"))


def sent(store: RemoteStore, said: list[str] | None = None) -> Sent:
    return store.checkpoints("attack", KEY, (said if said is not None else []).append)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def latest(uri: str) -> float:
    content = Remote(uri).read(f"{BELOW}/{LATEST}")
    return float(json.loads(content)["seconds"]) if content else 0.0


def elsewhere(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteStore:
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "two"))
    store = open_store(uri)
    assert isinstance(store, RemoteStore)
    return store


def test_another_machine_goes_on_from_what_was_sent(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = sent(open_store(uri))
    for step, seconds in ((10, 100.0), (20, 200.0)):
        write(first.folder, step, seconds)
        first.saved()
        until(lambda wanted=seconds: latest(uri) == wanted)
    until(lambda: len({name.split("/")[0] for name in Remote(uri).sizes(BELOW)}) == 2)  # the mark and one snapshot
    there = elsewhere(uri, monkeypatch, tmp_path)
    second = sent(there)
    second.restore()
    assert steps(second.folder) == [10, 20]
    write(second.folder, 30, 300.0)
    second.saved()
    until(lambda: latest(uri) == 300.0)
    first.restore()
    assert steps(first.folder) == [10, 20, 30], "the stale folder here is replaced"
    second.close(done=True)
    until(lambda: not Remote(uri).sizes("checkpoints"))
    assert not second.folder.exists()
    assert list((there.root / "unfinished").iterdir()) == []


def test_a_folder_that_has_come_further_is_kept(uri: str) -> None:
    kept = sent(open_store(uri))
    write(kept.folder, 10, 100.0)
    kept.saved()
    until(lambda: latest(uri) == 100.0)
    write(kept.folder, 20, 200.0)
    kept.restore()
    assert steps(kept.folder) == [10, 20]


def test_a_stage_that_failed_keeps_its_checkpoints(uri: str) -> None:
    kept = sent(open_store(uri))
    write(kept.folder, 10, 100.0)
    kept.saved()
    until(lambda: latest(uri) == 100.0)
    kept.close(done=False)
    assert latest(uri) == 100.0
    assert steps(kept.folder) == [10]


def test_what_cannot_be_sent_is_a_warning_and_takes_no_time(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    kept = sent(open_store(uri), said)
    go = threading.Event()

    def refused(*_: object) -> None:
        go.wait(30)
        raise UserError("memory://shared/store: requests fail (gone); run again to continue")

    monkeypatch.setattr(kept._remote, "send", refused)
    write(kept.folder, 10, 100.0)
    begin = time.monotonic()
    for _ in range(3):  # while the thread is busy
        kept.saved()
    assert time.monotonic() - begin < 5
    go.set()
    until(lambda: len(said) == 2)  # the first, and the last of those that waited
    assert "a checkpoint could not be sent to the store (memory://shared/store: requests fail" in said[0]
    kept.close(done=True)
    assert not kept.folder.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"snapshot": "x"}', b'{"snapshot": "x", "seconds": "y"}'])
def test_a_damaged_mark_there_is_a_warning(uri: str, content: bytes) -> None:
    said: list[str] = []
    kept = sent(open_store(uri), said)
    write(kept.folder, 10, 100.0)
    Remote(uri).write(f"{BELOW}/{LATEST}", content)
    kept.restore()
    assert steps(kept.folder) == [10]
    assert "the checkpoint in the store cannot be used, the stage begins here" in said[0]


def test_checkpoints_of_finished_stages_there_are_cleared(uri: str) -> None:
    store = open_store(uri)
    for key in (KEY, "b" * 64):
        Remote(uri).write(f"checkpoints/attack/{key}/{LATEST}", b"{}")

    def build(folder: Path) -> dict[str, object]:
        (folder / "weights").write_text("whole")
        return {}

    store.put("attack", KEY, build)
    store.clear_leftovers()
    assert Remote(uri).names("checkpoints/attack") == ["b" * 64]


def test_on_a_disk_checkpoints_get_the_permissions_of_the_store(store: LocalStore) -> None:
    store.root.chmod(0o775)
    kept = store.checkpoints("attack", KEY, lambda line: None)
    assert type(kept) is Kept
    write(kept.folder, 10, 100.0)
    (kept.folder / "1-attack/1-bf16/checkpoint-10/model.safetensors").chmod(0o600)
    kept.saved()
    modes = {path: path.stat().st_mode & 0o777 for path in (store.root / "checkpoints").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o775}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o664}
    kept.close(done=False)
    assert steps(kept.folder) == [10]
    kept.close(done=True)
    assert not kept.folder.exists()
