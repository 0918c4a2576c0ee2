"""A store that others use too: other users, other containers, and whoever removes it or puts odd things into it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from benchmark.io import owners
from benchmark.io.owners import SILENT, me
from benchmark.plan import maintenance
from benchmark.store import leases
from benchmark.store.errors import UnreadableError
from benchmark.store.leases import FileLeases, Leases, holders
from benchmark.store.local import LocalStore
from benchmark.store.remote import reopen
from sande.errors import UserError
from tests.benchmark.helpers import invoke
from tests.users import CONTAINERS, ONE, ONLY_ROOT, TEAM, TWO, as_user, in_a_container, open_folder

KEY = "k" * 64
CLEAR = """
import sys
from pathlib import Path
from benchmark.io.files import clear_parts
from benchmark.store.local import LocalStore

LocalStore(Path(sys.argv[1])).clear_leftovers()
print("cleared")
"""


def build(folder: Path) -> dict[str, Any]:
    import numpy as np

    (folder / "deep").mkdir()
    (folder / "deep/tokens.json").write_text("{}")
    save_file({"weight": np.zeros(3)}, folder / "model.safetensors")  # for its owner alone
    return {"settings": {}}


def use(root: Path, key: str) -> None:
    """All that a run writes into a store but for models that are made once."""
    store = LocalStore(root)
    store.put("attack", key, build)
    store.put("evaluate", key, build)
    store.quarantine("evaluate", key, "of no use")
    held = Leases(store.lease_backend(), print)
    held.acquire("use", [("attack", key)])
    held.close()
    store.check_writable()


@ONLY_ROOT
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_two_users_of_a_group_share_a_store(umask: int) -> None:
    with open_folder() as folder:
        root = folder / "store"
        root.mkdir()
        os.chown(root, 0, TEAM)
        root.chmod(0o2770)
        assert as_user(ONE, lambda: use(root, "a" * 64), umask) == "None"
        for path in root.rglob("*"):
            found = path.stat()
            wanted = 0o770 if path.is_dir() else 0o660
            assert (stat.S_IMODE(found.st_mode) & 0o777, found.st_gid) == (wanted, TEAM), path

        def second() -> str:
            store = LocalStore(root)
            store.clear_leftovers()
            assert store.complete("attack", ["a" * 64]) == {"a" * 64}
            store.read("attack", "a" * 64)
            use(root, "b" * 64)
            store.remove("attack", "a" * 64)
            return " ".join(store.keys("attack"))

        assert as_user(TWO, second, umask) == "b" * 64


@ONLY_ROOT
@pytest.mark.parametrize("at", ["attack", "attack/KEY", "attack/KEY/manifest.json", "attack/KEY/model.safetensors"])
def test_what_may_not_be_read_is_not_damaged_and_is_not_moved(at: str) -> None:
    with open_folder() as folder:
        root = folder / "store"
        assert as_user(ONE, lambda: LocalStore(root).put("attack", KEY, build)) == "None"
        place = root / at.replace("KEY", KEY)
        had = place.stat().st_mode
        place.chmod(0)
        before = sorted(root.rglob("*"))

        def read() -> None:
            LocalStore(root).read("attack", KEY)

        def prepare() -> list[str]:
            return list(LocalStore(root).quarantine_damaged([("attack", KEY)]))

        for work in (read, prepare) if at == "attack/KEY/model.safetensors" else (read,):
            said = as_user(TWO, work)
            if work is read:
                assert said.startswith(f"UnreadableError: {place}"), said
                assert said.endswith(f"have its owner run 'chmod -R a+rX {root}', or choose another --store")
            else:
                assert said == "[]"
        assert as_user(TWO, lambda: list(maintenance.verify(LocalStore(root)))).count("may not read it") == 1
        assert sorted(root.rglob("*")) == before
        place.chmod(had)
        assert as_user(TWO, lambda: LocalStore(root).read("attack", KEY)) == str(root / "attack" / KEY)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_refusal_to_read_is_a_sentence_wherever_it_comes_from(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from benchmark.store import manifest

    store.put("attack", KEY, build)

    def refused(path: str | Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    if name == "manifest.json":
        monkeypatch.setattr(manifest, "checked_text", refused)
    else:
        monkeypatch.setattr(manifest, "_sha256", refused)
    with pytest.raises(UnreadableError, match=rf"{store.path('attack', KEY)}/.*: this user may not read it"):
        store.read("attack", KEY)
    result = invoke("store", "verify", "--store", store.root)
    assert result.exit_code == 1
    assert "0 artifacts in order, 0 damaged, 1 unreadable" in result.output
    assert store.path("attack", KEY).is_dir()
    assert not store.damaged.exists()
    if name == "manifest.json":
        assert "may not be read" in invoke("store", "list", "--store", store.root).output


@CONTAINERS
def test_a_container_of_the_same_name_removes_nothing_of_a_live_run(store: LocalStore) -> None:
    work = store.scratch("attack")
    part = store.root / f".table.{me()}.part"
    part.write_text("half")
    mine = Leases(store.lease_backend(), print)
    mine.acquire("use", [("attack", KEY)])
    try:
        assert in_a_container(CLEAR, store.root) == "cleared"
        assert work.is_dir()
        assert part.exists()
        assert holders(store.lease_backend()) == [f"process {os.getpid()} on {os.uname().nodename}"]
    finally:
        mine.close()


@CONTAINERS
def test_a_container_whose_first_process_has_the_number_of_a_live_one_is_not_this_machine(store: LocalStore) -> None:
    code = "import sys; from pathlib import Path; from benchmark.store.local import LocalStore\n"
    code += "print(LocalStore(Path(sys.argv[1])).scratch('left'))"
    left = Path(in_a_container(code, store.root))
    store.clear_leftovers()
    assert left.is_dir(), "whether it lives cannot be seen from here"
    os.utime(left, (time.time() - 2 * SILENT,) * 2)
    store.clear_leftovers()
    assert not left.exists()


def test_a_removed_store_is_not_made_again_by_a_stage(store: LocalStore) -> None:
    store.put("attack", KEY, build)
    shutil.rmtree(store.root)
    for work in (
        lambda: reopen(str(store.root)),
        store.check_there,
        store.check_writable,
        lambda: store.scratch("work"),
        lambda: store.put("attack", KEY, build),
    ):
        with pytest.raises(UserError, match=r"was removed while it was used; restore it, or run again"):
            work()
    assert not store.root.exists()


def test_a_store_that_is_removed_while_an_artifact_is_made_is_a_sentence(store: LocalStore) -> None:
    def removed(folder: Path) -> dict[str, Any]:
        shutil.rmtree(store.root)
        return build(folder)

    with pytest.raises(UserError, match="was removed while it was used"):
        store.put("attack", KEY, removed)
    (store.root / "checkpoints/attack").mkdir(parents=True)  # a training that went on
    assert LocalStore(store.root).exists


@ONLY_ROOT
def test_a_store_that_may_only_be_read_serves_what_is_done() -> None:
    with open_folder() as folder:
        root = folder / "store"
        assert as_user(ONE, lambda: use(root, KEY)) == "None"

        def look() -> str:
            store = LocalStore(root)
            store.clear_leftovers()
            return f"{store.complete('attack', [KEY])} {store.read('attack', KEY)}"

        assert as_user(TWO, look) == f"{ {KEY} } {root / 'attack' / KEY}"
        for work in (
            lambda: LocalStore(root).check_writable(),
            lambda: LocalStore(root).scratch("work"),
            lambda: LocalStore(root).put("attack", "b" * 64, build),
        ):
            said = as_user(TWO, work)
            assert said.startswith(f"UserError: store {root} cannot be written ({root}/unfinished"), said
        held = as_user(TWO, lambda: Leases(LocalStore(root).lease_backend(), print).acquire("use", [("attack", KEY)]))
        assert held == "None", "the stage itself reports it"
        (root / "unfinished").chmod(0o777)
        said = as_user(TWO, lambda: LocalStore(root).check_writable())
        assert f"({root}/attack: Permission denied)" in said


ODD_NAMES = st.sampled_from(
    [
        "attack-x.1",
        "attack-x.007",
        "attack-x.0",
        "attack-x.-1",
        f"attack-x.{'9' * 200}",
        "attack-x.999999999",
        "attack-x.٣",
        "attack-x",
        "x.1",
        ".1",
        "attack-x.1.1",
    ]
) | st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40)
ODD_CONTENT = st.sampled_from(
    [
        *(
            json.dumps({"process": process, "started": started, "machine": f"host/{owners.machine()}"}).encode()
            for process in (0, -1, 2**31, 10**30, True, 1.5, "7", None, [], {})
            for started in (0, -1, "x", None, 10**40)
        ),
        json.dumps({"process": 7, "machine": 7}).encode(),
        json.dumps({"process": 7, "machine": f"{os.uname().nodename}/pid:[4026531836]"}).encode(),
        b"[" * 10_000,
        b"\xff",
        b"",
        b"7",
    ]
) | st.binary(max_size=60)
KINDS = st.sampled_from(["file", "folder", "full folder", "link", "loop", "pipe"])


def put_odd(path: Path, kind: str, content: bytes) -> None:
    if kind == "file":
        path.write_bytes(content)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("link", "loop"):
        path.symlink_to(path.name if kind == "loop" else "/nowhere")
    else:
        path.mkdir()
        if kind == "full folder":
            (path / "file").write_bytes(content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(odd=st.lists(st.tuples(ODD_NAMES, KINDS, ODD_CONTENT), min_size=1, max_size=4, unique_by=lambda one: one[0]))
def test_odd_leases_stop_no_run(tmp_path_factory, odd: list[tuple[str, str, bytes]]) -> None:
    folder = tmp_path_factory.mktemp("store") / "leases"
    folder.mkdir()
    for name, kind, content in odd:
        if len(name.encode()) < 255 and name not in (".", ".."):
            put_odd(folder / name, kind, content)
    said = holders(FileLeases(folder))
    assert all(isinstance(each, str) for each in said)
    mine = Leases(FileLeases(folder), lambda line: None, seconds=0.0)
    for _ in range(2):  # an odd lease is waited for as any that is not renewed
        holder = mine.acquire("use", [("attack", "x")])
        time.sleep(0.001)
    assert holder is None
    held = {name for name, _ in mine._held.items()}
    mine.close()
    assert held == {"attack-x"}
    numbers = leases._numbers(os.listdir(folder)).get("attack-x", [])
    assert all(not (folder / f"attack-x.{number}").is_file() for number in numbers), "its own lease is gone"


ODD_WORK = st.sampled_from(
    [
        f"{10**30}-1@{owners.machine()}@x",
        f"{2**31}-1@{owners.machine()}@x",
        f"0-0@{owners.machine()}@x",
        f"-1-5@{owners.machine()}@x",
        f"99999999999@{os.uname().nodename}@x",
        f"1@{os.uname().nodename}@x",
        "@@",
        "7",
        "7@@x",
        f"٣-1@{owners.machine()}@x",
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(odd=st.lists(st.tuples(ODD_WORK, KINDS), min_size=1, max_size=4, unique_by=lambda one: one[0]))
def test_odd_leftovers_stop_no_run(tmp_path_factory, odd: list[tuple[str, str]]) -> None:
    store = LocalStore(tmp_path_factory.mktemp("at") / "store")
    for name, kind in odd:
        put_odd(store.root / "unfinished" / name, kind, b"")
        put_odd(store.root / f".{name}.part", kind, b"")
    before = sorted(store.root.rglob("*"))
    store.clear_leftovers()
    assert sorted(store.root.rglob("*")) == before, "none of them is known to be left"


@pytest.mark.parametrize("name", ["unfinished", "leases", "attack", "evaluate", "damaged", "checkpoints", "models"])
@pytest.mark.parametrize("kind", ["file", "loop", "pipe"])
def test_something_else_in_the_place_of_a_folder_is_a_sentence_or_does_not_matter(
    store: LocalStore, name: str, kind: str
) -> None:
    shutil.rmtree(store.root / name, ignore_errors=True)
    put_odd(store.root / name, kind, b"")
    opened = LocalStore(store.root)
    opened.clear_leftovers()
    assert opened.complete(name, [KEY]) == set()
    assert list(opened.quarantine_damaged([("attack", KEY)])) == []
    if name in ("unfinished", "attack"):
        with pytest.raises(UserError, match=rf"store {store.root} cannot be written \({store.root / name}"):
            opened.put("attack", KEY, build)
    else:
        opened.put("attack", KEY, build)
        assert opened.has("attack", KEY)
    for command in (("store", "list"), ("store", "verify")):
        assert invoke(*command, "--store", store.root).exit_code in (0, 2)


def test_one_lease_that_cannot_be_renewed_does_not_end_the_others(tmp_path: Path) -> None:
    class Refusing(FileLeases):
        def write(self, name: str, content: bytes) -> None:
            if name.startswith("attack"):
                raise PermissionError(13, "Permission denied", name)
            super().write(name, content)
            renewed.set()

    renewed = threading.Event()
    mine = Leases(Refusing(tmp_path / "leases"), print, seconds=0.3)
    try:
        assert mine.acquire("use", [("attack", KEY), ("evaluate", KEY)]) is None
        assert renewed.wait(20)
    finally:
        mine.close()


@pytest.fixture
def clean_umask() -> Iterator[None]:
    old = os.umask(0o077)
    yield
    os.umask(old)


def test_a_model_that_is_made_once_is_for_all_users_of_the_store(store: LocalStore, clean_umask: None) -> None:
    from sande.models import loading

    store.root.chmod(0o755)
    folder = loading.prepare("tiny", store.models)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (store.models, folder)}
    assert modes == {0o755}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_a_process_of_an_earlier_version_keeps_its_work_for_a_day(store: LocalStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = store.root / "unfinished" / f"{ended.pid}@{os.uname().nodename}@attack-1"
    left.mkdir()
    store.clear_leftovers()
    assert left.is_dir(), "it may be of a container with the name of this host"
    os.utime(left, (time.time() - 2 * SILENT,) * 2)
    store.clear_leftovers()
    assert not left.exists()
