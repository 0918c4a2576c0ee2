"""`store verify` while runs work on the store: it counts what it found, whatever is added and removed meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.io import remote as io_remote
from benchmark.io.remote import Remote
from benchmark.store.local import LocalStore
from benchmark.store.remote import open_store
from tests.benchmark.helpers import invoke


def build(folder: Path) -> dict[str, Any]:
    (folder / "outcomes").write_bytes(b"outcomes")
    return {"kind": "evaluate"}


def verified(place: object) -> tuple[int, str]:
    result = invoke("store", "verify", "--store", place)
    return result.exit_code, result.output.splitlines()[-1].rpartition(": ")[2]


def test_what_a_run_adds_and_removes_meanwhile_is_not_counted_as_damage(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a", "b", "c"):
        store.put("evaluate", key, build)
    problem = LocalStore.problem

    def meanwhile(self: LocalStore, kind: str, key: str, every_byte: bool = False) -> str | None:
        monkeypatch.setattr(LocalStore, "problem", problem)
        for added in ("d", "e"):
            self.put("evaluate", added, build)
        self.remove("evaluate", "c")
        return self.problem(kind, key, every_byte)

    monkeypatch.setattr(LocalStore, "problem", meanwhile)
    assert verified(store.root) == (0, "2 artifacts in order, 0 damaged, 1 removed")
    assert verified(store.root) == (0, "4 artifacts in order, 0 damaged")
    (store.path("evaluate", "a") / "outcomes").write_bytes(b"other")
    assert verified(store.root) == (1, "3 artifacts in order, 1 damaged")


def test_an_unfinished_upload_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    place = "memory://shared/store"
    for key in ("a", "b"):
        open_store(place).put("evaluate", key, build)
    Remote(place).delete("evaluate/b/manifest.json")
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path / "elsewhere"))
    assert verified(place) == (0, "1 artifact in order, 0 damaged, 1 unfinished")
    assert "unfinished" in invoke("store", "list", "--store", place).output
