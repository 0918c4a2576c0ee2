"""Runs on one store at once, each for a grid of its own: none takes what another one sends, makes or has planned on."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmark.grid.cell import Cell
from benchmark.io import remote as io_remote
from benchmark.io.remote import Remote
from benchmark.plan import maintenance, retention
from benchmark.plan.plan import make_plan
from benchmark.plan.retention import Keeper
from benchmark.store.errors import DamagedError
from benchmark.store.leases import Leases, OtherRuns, at_work
from benchmark.store.local import LocalStore
from benchmark.store.protocol import Store
from benchmark.store.remote import RemoteStore, open_store, tidy
from sande.errors import UserError
from tests.benchmark.helpers import SFT_FAST, cell, finish

KEY = "k" * 64
ANOTHER = json.dumps({"process": 7, "started": 1, "machine": "other/0123", "run": "r", "beat": 0}).encode()
Open = Callable[[str], RemoteStore]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    """Opens one remote store as each of several machines sees it."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(io_remote, "FIRST_PAUSE", 0.001)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]

    def opened(machine: str) -> RemoteStore:
        monkeypatch.setenv(io_remote.CACHE, str(tmp_path / machine))
        store = open_store("memory://shared/store")
        assert isinstance(store, RemoteStore)
        return store

    return opened


def build(folder: Path) -> dict[str, Any]:
    (folder / "model.safetensors").write_bytes(b"weights")
    return {"kind": "attack"}


def before_manifest(store: RemoteStore, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Have `work` done when a put has sent all files but the manifest."""
    send = store._remote.send

    def hooked(names: Iterable[str], folder: Path, below: str = "") -> None:
        names = list(names)
        if names == ["manifest.json"]:
            work()
        send(names, folder, below)

    monkeypatch.setattr(store._remote, "send", hooked)


@pytest.mark.parametrize("kind", ["attack", "evaluate"])
def test_what_another_run_is_sending_is_not_damaged(at: Open, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = at("a"), at("b")
    found: list[object] = []

    def look() -> None:
        found.extend(b.quarantine_damaged([(kind, KEY)]))
        found.extend(finding.state for finding in maintenance.verify(b))
        with pytest.raises(DamagedError, match=r"its upload is not finished; run again"):
            b.read(kind, KEY)

    before_manifest(a, monkeypatch, look)
    a.put(kind, KEY, build)
    assert found == ["unfinished"]
    assert (at("c").read(kind, KEY) / "model.safetensors").read_bytes() == b"weights"
    assert a.quarantined() == {}


def test_a_damaged_artifact_that_is_sent_again_meanwhile_is_not_moved(at: Open) -> None:
    a, b = at("a"), at("b")
    a.put("attack", KEY, build)
    Remote(a.location).delete(f"attack/{KEY}/manifest.json")  # as the other run has moved it and begun to send it
    assert "quarantined" not in b.quarantine("attack", KEY, "manifest.json is garbled")
    assert a.quarantined() == {}


def hook(method: str, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `work` done once after a method of the remote folder has looked at it."""
    original = getattr(Remote, method)

    def hooked(self: Remote, *args: str) -> object:
        found = original(self, *args)
        monkeypatch.setattr(Remote, method, original)
        work()
        return found

    monkeypatch.setattr(Remote, method, hooked)


@pytest.mark.parametrize("method", ["read", "names"])
def test_two_runs_may_make_a_store_at_once(at: Open, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook(method, lambda: at("b"), monkeypatch)
    assert at("a").exists


def test_the_mark_of_a_newer_version_that_made_the_store_first_stays(at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = b'{"format": 99}'
    hook("names", lambda: Remote("memory://shared/store").write("store.json", newer), monkeypatch)
    with pytest.raises(UserError, match="has format 99"):
        at("a")
    assert Remote("memory://shared/store").read("store.json") == newer


def keeper(store: Store, of: Cell) -> Keeper:
    plan = make_plan([of], store)
    return Keeper(plan.stages.values(), plan.done, store, "none")


def test_no_model_is_dropped_while_another_run_is_at_work(store: LocalStore) -> None:
    of = finish(store, cell(defense=SFT_FAST), {"asr": 50}, {"asr": 50})
    leases, kept = store.lease_backend(), keeper(store, of)
    assert leases.create("defend-other.1", ANOTHER)
    kept.sweep()
    for stage in make_plan([of], store).stages.values():
        kept.ended(stage)
    assert store.has("attack", of.attack_key)
    leases.delete("defend-other.1")
    mine = Leases(leases, print)
    assert mine.acquire("use", [("evaluate", KEY)]) is None  # this run itself is at work
    kept.sweep()
    mine.close()
    assert not store.has("attack", of.attack_key)
    assert not store.has("defend", of.defense_key)


def test_a_run_without_a_heartbeat_is_not_at_work(store: LocalStore) -> None:
    leases = store.lease_backend()
    runs = OtherRuns(leases, seconds=-1.0)  # the heartbeat is too old as soon as it is seen
    assert not runs.at_work()
    leases.create("defend-other.1", ANOTHER)
    assert not runs.at_work()
    runs = OtherRuns(leases)
    assert runs.at_work()
    assert runs.at_work(), "it has been silent for a moment only"


@pytest.mark.parametrize("remote", [False, True])
def test_a_model_that_another_run_dropped_is_not_called_damaged(store: LocalStore, at: Open, remote: bool) -> None:
    reader: Store = at("a") if remote else store
    other: Store = at("b") if remote else store
    other.put("attack", KEY, build)
    assert reader.has("attack", KEY)
    retention.drop(other, "attack", KEY)
    with pytest.raises(DamagedError, match=r"^attack kkkkkkkk was removed by another run; run again to recompute it$"):
        reader.read("attack", KEY)
    assert not store.damaged.exists()


def local_files(store: RemoteStore) -> set[str]:
    return {path.name for path in store.root.rglob("*") if path.is_file()} - {"store.json"}


def test_a_machine_frees_what_is_no_longer_in_the_store(at: Open) -> None:
    node, driver = at("node"), at("driver")
    node.put("defend", "a" * 64, build)
    driver.put("attack", "b" * 64, build)
    node.read("attack", "b" * 64)
    driver.put("attack", "c" * 64, build)
    node.read("attack", "c" * 64)
    retention.drop(driver, "defend", "a" * 64)
    driver.remove("attack", "b" * 64)
    for key in ("c" * 64, "d" * 64):  # another machine did the first one; the second one was interrupted
        checkpoint = node.root / "checkpoints/attack" / key / f"checkpoint-{key[0]}"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    node.clear_leftovers()
    assert not node.path("defend", "a" * 64).exists()
    assert not node.path("attack", "b" * 64).exists()
    assert node.path("attack", "c" * 64).is_dir()
    assert local_files(node) == {"manifest.json", "model.safetensors", f"attack-{'c' * 64}", "checkpoint-d"}


def test_a_worker_tidies_its_machine_and_a_store_here_is_left_to_the_driver(at: Open, tmp_path: Path) -> None:
    driver, node = at("driver"), at("node")
    node.put("defend", "a" * 64, build)
    retention.drop(driver, "defend", "a" * 64)
    tidy(node.location)
    assert not node.path("defend", "a" * 64).exists()
    tidy(str(tmp_path / "absent"))
    tidy("memory://shared/absent")
    assert not (tmp_path / "absent").exists()


def test_a_machine_keeps_a_model_that_is_not_sent_yet(at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    node, driver = at("node"), at("driver")

    def cleared() -> None:  # by another process of the machine
        node.clear_leftovers()
        assert node.path("attack", KEY).is_dir()

    before_manifest(node, monkeypatch, cleared)
    node.put("attack", KEY, build)
    retention.drop(driver, "attack", KEY)
    leases = Leases(driver.lease_backend(), print)
    assert leases.acquire("use", [("attack", KEY)]) is None  # it is to be made again, so the copy here is sent
    node.put("attack", KEY, lambda folder: pytest.fail("made again"))
    Remote(node.location).remove(f"attack/{KEY}")
    cleared()
    leases.close()
    node.clear_leftovers()
    assert not node.path("attack", KEY).exists()


def test_a_machine_keeps_a_model_whose_upload_failed(at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    node = at("node")

    def refused(*args: object) -> None:
        raise UserError("memory://shared/store: requests fail; run again to continue")

    node.put("attack", KEY, build)
    node._remote.remove(f"attack/{KEY}")
    (node.path("attack", KEY) / "model.safetensors").unlink()  # so it is made again
    with monkeypatch.context() as broken:
        broken.setattr(node._remote, "send", refused)
        with pytest.raises(UserError, match="requests fail"):
            node.put("attack", KEY, build)
    node.clear_leftovers()
    node.put("attack", KEY, lambda folder: pytest.fail("made again"))


def test_what_a_dead_run_elsewhere_held_ends_with_the_next_run_that_lasts(store: LocalStore) -> None:
    of, backend = finish(store, cell(defense=SFT_FAST), {"asr": 50}, {"asr": 50}), store.lease_backend()
    assert backend.create("run-dead.1", ANOTHER)
    assert backend.create("defend-dead.1", ANOTHER)
    plan = make_plan([of], store)
    with at_work(backend, print) as others:
        Keeper(plan.stages.values(), plan.done, store, "none", others).sweep()
        assert store.has("attack", of.attack_key), "it has been silent for a moment only"
        others._seconds = -1.0  # a minute later
        Keeper(plan.stages.values(), plan.done, store, "none", others).sweep()
        assert not store.has("attack", of.attack_key)
    assert backend.names() == ["defend-dead.1"]  # the run that needs its artifact takes it over


def test_a_run_that_drops_nothing_removes_the_lease_of_a_dead_one(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store.lease_backend()
    assert backend.create("run-dead.1", ANOTHER)
    with at_work(backend, print):
        assert len(backend.names()) == 2
        monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert backend.names() == []


def test_a_record_of_a_copy_that_cannot_be_removed_stops_nothing(at: Open) -> None:
    node = at("node")
    node.put("attack", KEY, build)
    record = node.root / "sent" / f"attack-{KEY}"
    record.unlink()
    record.mkdir()  # fails as a file does that is another user's
    node.remove("attack", KEY)
    assert not node.path("attack", KEY).exists()
