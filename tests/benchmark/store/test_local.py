"""The store: artifacts appear whole or not at all, whatever happens to the process that makes them."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.io.files import clear_parts, write_atomically
from benchmark.io.owners import machine, me
from benchmark.store.errors import DamagedError
from benchmark.store.local import FORMAT, LocalStore
from benchmark.store.remote import open_store
from sande.errors import UserError

ROOT = Path(__file__).parents[3]
HALF_A_FILE = """
import sys, time
from pathlib import Path
from benchmark.store.local import LocalStore

def build(folder):
    (folder / "weights").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(100)

LocalStore(Path(sys.argv[1])).put("attack", "k" * 64, build)
"""
A_LEASE = """
import sys, time
from pathlib import Path
from benchmark.store.leases import Leases
from benchmark.store.local import LocalStore

Leases(LocalStore(Path(sys.argv[1])).lease_backend(), print).acquire("some use", [("attack", "done")])
print("taken", flush=True)
time.sleep(100)
"""
ONE_OF_TWO = """
import sys, time
from pathlib import Path
from benchmark.store.local import LocalStore

def build(folder):
    (folder / "weights").write_text(sys.argv[2])
    print("built", flush=True)
    sys.stdin.readline()
    return {"by": sys.argv[2]}

LocalStore(Path(sys.argv[1])).put("attack", "k" * 64, build)
"""
KEY = "k" * 64


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own, after it has said its first line."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("half", "built", "taken")
    return process


def put(store: LocalStore, content: str = "whole", key: str = KEY) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text(content)
        return {"content": content}

    store.put("attack", key, build)


def sentence(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_put_is_there_with_its_manifest(store: LocalStore) -> None:
    assert not store.has("attack", KEY)
    put(store)
    assert store.has("attack", KEY)
    assert store.manifest("attack", KEY) == {"content": "whole"}
    assert (store.path("attack", KEY) / "weights").read_text() == "whole"
    assert list((store.root / "unfinished").iterdir()) == []


def test_kinds_and_keys_are_kept_apart(store: LocalStore) -> None:
    put(store)
    assert not store.has("defend", KEY)
    assert not store.has("attack", "other")


def test_complete_artifacts_among_those_asked_for(store: LocalStore) -> None:
    assert store.complete("attack", [KEY]) == set()
    for key in (KEY, "another"):
        store.put("attack", key, lambda folder: {})
    (store.root / "attack" / "half").mkdir()
    assert store.complete("attack", [KEY, "half", "absent"]) == {KEY}
    assert store.complete("defend", [KEY]) == set()


def test_another_store_object_of_the_folder_sees_it(store: LocalStore) -> None:
    put(store)
    assert LocalStore(store.root).has("attack", KEY)
    assert LocalStore(store.root, create=False).has("attack", KEY)


def test_a_build_that_raises_leaves_nothing(store: LocalStore) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        store.put("attack", KEY, build)
    assert not store.path("attack", KEY).exists()
    assert list((store.root / "unfinished").iterdir()) == []


def test_a_manifest_that_is_no_json_leaves_nothing(store: LocalStore) -> None:
    with pytest.raises(TypeError):
        store.put("attack", KEY, lambda folder: {"bad": object()})
    assert not store.path("attack", KEY).exists()
    assert list((store.root / "unfinished").iterdir()) == []


def test_a_killed_process_leaves_no_artifact_and_its_remains_are_cleared(store: LocalStore) -> None:
    process = start(HALF_A_FILE, str(store.root))
    (remains,) = (store.root / "unfinished").iterdir()
    assert (remains / "weights").read_bytes() == b"half"
    store.clear_leftovers()
    assert remains.is_dir()  # its process lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not store.path("attack", KEY).exists()
    store.clear_leftovers()
    assert list((store.root / "unfinished").iterdir()) == []
    put(store)
    assert store.manifest("attack", KEY) == {"content": "whole"}


def test_leases_of_a_process_that_is_gone_and_checkpoints_of_what_is_done_are_cleared(store: LocalStore) -> None:
    process = start(A_LEASE, str(store.root))
    for key in (KEY, "begun"):
        (store.root / "checkpoints" / "attack" / key).mkdir(parents=True)
    put(store)
    store.clear_leftovers()
    assert store.lease_backend().names() == ["attack-done.1"]  # its process lives
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # gone, though nobody has asked for its end
    store.clear_leftovers()
    process.communicate()
    assert store.lease_backend().names() == []
    assert os.listdir(store.root / "checkpoints" / "attack") == ["begun"]


def test_own_and_other_machines_work_is_not_cleared(store: LocalStore) -> None:
    own = store.scratch("own")
    elsewhere = store.root / "unfinished" / f"999999-1@{'0' * 16}@attack-1"
    earlier = store.root / "unfinished" / f"999999@not-{socket.gethostname()}@attack-1"
    for folder in (elsewhere, earlier):
        folder.mkdir()
    store.clear_leftovers()
    assert all(folder.is_dir() for folder in (own, elsewhere, earlier))


def test_a_foreign_file_among_unfinished_work_does_not_stop_a_run(store: LocalStore) -> None:
    (store.root / "unfinished" / ".DS_Store").write_text("")
    store.clear_leftovers()


def test_a_folder_without_manifest_is_no_artifact(store: LocalStore) -> None:
    store.path("attack", KEY).mkdir(parents=True)
    assert not store.has("attack", KEY)


def test_a_folder_without_manifest_is_replaced(store: LocalStore) -> None:
    store.path("attack", KEY).mkdir(parents=True)
    (store.path("attack", KEY) / "weights").write_text("somebody deleted the manifest")
    put(store)
    assert store.manifest("attack", KEY) == {"content": "whole"}
    assert (store.path("attack", KEY) / "weights").read_text() == "whole"


def test_two_processes_with_one_key_make_one_artifact_and_no_error(store: LocalStore) -> None:
    both = [start(ONE_OF_TWO, str(store.root), name) for name in ("a", "b")]
    for process in both:
        _, err = process.communicate("go\n", timeout=30)
        assert process.returncode == 0, err
    assert store.manifest("attack", KEY)["by"] == (store.path("attack", KEY) / "weights").read_text() == "a"
    assert list((store.root / "unfinished").iterdir()) == []


def test_two_processes_may_open_a_new_store_at_once(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from benchmark.store.local import LocalStore\n"
    script += "print('built', flush=True); sys.stdin.readline(); LocalStore(Path(sys.argv[1]))"
    both = [start(script, str(tmp_path / "new")) for _ in range(4)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err


def test_a_store_of_a_newer_format_is_refused(store: LocalStore) -> None:
    (store.root / "store.json").write_text(f'{{"format": {FORMAT + 1}}}')
    text = sentence(lambda: LocalStore(store.root))
    assert f"format {FORMAT + 1}" in text
    assert str(store.root) in text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "one"}', "7", "\x00\x01"])
def test_a_damaged_mark_is_one_sentence(store: LocalStore, content: str) -> None:
    (store.root / "store.json").write_text(content)
    assert "store.json is damaged" in sentence(lambda: LocalStore(store.root))


def test_a_folder_with_other_files_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds files but is not a store" in sentence(lambda: LocalStore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_place_is_not_the_working_folder(blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the store is blank; set it to a folder, or to a URI" in sentence(lambda: open_store(blank))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "x"])
def test_a_store_at_a_file_or_below_one_is_refused(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    text = sentence(lambda: LocalStore(file / below))
    assert "cannot be written" in text
    assert "--store" in text


def test_looking_at_a_store_makes_none(tmp_path: Path) -> None:
    assert not LocalStore(tmp_path / "new", create=False).has("attack", KEY)
    assert not (tmp_path / "new").exists()


def test_writing_atomically_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_atomically(path, "long content")
    write_atomically(path, b"short")
    assert path.read_bytes() == b"short"
    assert [found.name for found in tmp_path.iterdir()] == ["text"]


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_atomically(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["text"]


def test_a_write_onto_a_folder_fails_and_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    with pytest.raises(OSError, match=r"text"):
        write_atomically(tmp_path / "text", "new")
    assert [found.name for found in tmp_path.iterdir()] == ["text"]


def test_scratch_folders_are_new_and_tell_their_owner(store: LocalStore) -> None:
    first, second = store.scratch("x"), store.scratch("x")
    assert first != second
    assert first.name.startswith(f"{me()}@x-")
    assert me().process == os.getpid()
    assert list(first.iterdir()) == []


def test_remains_of_a_finished_process_are_cleared(store: LocalStore) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    remains = store.root / "unfinished" / f"{process.pid}-0@{machine()}@tune-1"
    (remains / "deep").mkdir(parents=True)
    store.clear_leftovers()
    assert not remains.exists()


HALF_A_TABLE = """
import sys, time
from pathlib import Path
from benchmark.io.files import atomically

with atomically(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(100)
"""


def test_a_process_killed_while_it_writes_a_file_leaves_the_old_one_and_its_part_is_cleared(store: LocalStore) -> None:
    path = store.root / "tables/rows.parquet"
    path.parent.mkdir()
    path.write_text("old")
    process = start(HALF_A_TABLE, str(path))
    clear_parts(store.root)
    assert len(list(path.parent.iterdir())) == 2  # its process lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old"
    (path.parent / f".rows.parquet.{process.pid}-1@{'0' * 16}.part").write_text("of another machine")
    clear_parts(store.root)
    assert len(list(path.parent.iterdir())) == 2
    assert not list(path.parent.glob(f".*@{machine()}.part"))


FILE = {"weights": b"whole" * 100, "deep/tokens.json": b"{}"}
LEGACY = '{\n "content": "old"\n}'


def put_files(store: LocalStore, kind: str = "attack") -> Path:
    def build(folder: Path) -> dict[str, Any]:
        for name, content in FILE.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return {"content": "whole", "numbers": [0.1, float("nan")]}

    store.put(kind, KEY, build)
    return store.path(kind, KEY)


def flip(path: Path, place: int = 7) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def set_aside(store: LocalStore) -> list[str]:
    return [path.name.rsplit("-", 1)[0] for path in store.damaged.iterdir()] if store.damaged.is_dir() else []


def test_a_manifest_has_size_and_checksum_of_every_file(store: LocalStore) -> None:
    manifest = json.loads((put_files(store) / "manifest.json").read_text())
    assert manifest["checksums"]["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILE.items()
    }
    assert store.problem("attack", KEY, every_byte=True) is None
    assert store.read("attack", KEY) == store.path("attack", KEY)


def truncated(folder: Path) -> None:
    os.truncate(folder / "weights", 10)


def deleted(folder: Path) -> None:
    (folder / "deep/tokens.json").unlink()


def unreadable(folder: Path) -> None:
    # What no mode forbids to the superuser, who may run the tests: reading a folder.
    (folder / "weights").unlink()
    (folder / "weights").mkdir()


def half_a_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 60)


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def another_number(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("0.1", "0.2"))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncated, "weights has 10 bytes, not 500"),
        (deleted, "deep/tokens.json is missing"),
        (unreadable, "weights is not a file"),
        (half_a_manifest, "manifest.json is garbled"),
        (no_manifest, "manifest.json is missing"),
        (another_number, "manifest.json is garbled"),
    ],
)
def test_a_damaged_artifact_is_found_by_looking_and_set_aside(
    store: LocalStore, damage: Callable[[Path], None], told: str
) -> None:
    damage(put_files(store))
    assert not store.has("attack", KEY)
    assert store.complete("attack", [KEY]) == set()
    assert store.problem("attack", KEY) == told
    (line,) = store.quarantine_damaged([("attack", KEY), ("attack", "absent")])
    assert told in line
    assert str(store.damaged) in line
    assert not store.path("attack", KEY).exists()
    assert set_aside(store) == [f"attack-{KEY}"]
    put_files(store)
    assert store.read("attack", KEY)


def test_a_flipped_bit_of_a_model_is_found_when_it_is_read(store: LocalStore) -> None:
    flip(put_files(store) / "weights")
    assert store.has("attack", KEY)
    with pytest.raises(DamagedError, match=r"weights has other content .* quarantined as .*; run again"):
        store.read("attack", KEY)
    assert not store.has("attack", KEY)
    assert set_aside(store) == [f"attack-{KEY}"]


def test_a_flipped_bit_of_an_outcome_is_found_by_looking(store: LocalStore) -> None:
    flip(put_files(store, "evaluate") / "weights")
    assert not store.has("evaluate", KEY)


def test_reading_what_is_not_there_is_a_sentence(store: LocalStore) -> None:
    assert "manifest.json is missing" in sentence(lambda: store.read("attack", KEY))
    assert "run again" in sentence(lambda: store.manifest("attack", KEY))
    assert set_aside(store) == []


def test_putting_over_a_damaged_artifact_sets_it_aside(store: LocalStore) -> None:
    truncated(put_files(store))
    put(store, "new")
    assert store.manifest("attack", KEY) == {"content": "new"}
    assert set_aside(store) == [f"attack-{KEY}"]


def test_damaged_manifests_are_left_out_of_all_of_a_kind(store: LocalStore) -> None:
    put(store, "first", "a")
    put(store, "second", "b")
    half_a_manifest(store.path("attack", "a"))
    assert [manifest["content"] for manifest in store.manifests("attack")] == ["second"]


def test_an_artifact_from_before_there_were_checksums_is_taken_as_it_is(store: LocalStore) -> None:
    folder = store.path("attack", KEY)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(LEGACY)
    (folder / "weights").write_bytes(b"anything")
    assert store.has("attack", KEY)
    assert store.read("attack", KEY) == folder
    assert store.manifest("attack", KEY) == {"content": "old"}


@given(data=st.data())
def test_no_flipped_bit_and_no_cut_of_a_manifest_goes_unseen(tmp_path_factory, data: st.DataObject) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    path = put_files(store) / "manifest.json"
    whole, known = path.read_bytes(), store.manifest("attack", KEY)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for content in (bytes(damaged), whole[: data.draw(st.integers(0, len(whole) - 2))]):
        path.write_bytes(content)
        # Where only white space was hit, nothing that is read has changed.
        if store.has("attack", KEY):
            assert str(store.manifest("attack", KEY)) == str(known)


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | st.just(b"[" * 5000))
def test_any_bytes_for_a_manifest_are_a_manifest_or_a_sentence(tmp_path_factory, content: bytes) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    path = put_files(store) / "manifest.json"
    path.write_bytes(content)
    if store.has("attack", KEY):
        assert isinstance(store.manifest("attack", KEY), dict)
    else:
        assert "manifest.json" in str(store.problem("attack", KEY))
        assert "run again" in sentence(lambda: store.read("attack", KEY))


SMALL_DISK = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
FILLS = """
import os, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from safetensors.numpy import save_file
from benchmark.io.files import write_atomically
from benchmark.store.local import LocalStore
from sande.errors import UserError

def plain(folder):
    (folder / "weights").write_bytes(bytes(3_000_000))
    return {}

def safetensors(folder):
    save_file({"weights": np.zeros(1_000_000)}, folder / "weights.safetensors")
    return {}

def parquet(folder):
    pq.write_table(pa.table({"outcome": np.random.rand(1_000_000)}), folder / "outcomes.parquet")
    return {}

def manifest(folder):
    free = os.statvfs(folder)
    (folder / "weights").write_bytes(bytes(free.f_bavail * free.f_bsize))
    return {}

store = LocalStore(Path(sys.argv[1]))
store.put("attack", "first", lambda folder: {})
for build in (plain, safetensors, parquet, manifest):
    try:
        store.put("attack", "second", build)
    except UserError as error:
        assert str(error).startswith(str(store.root)) and ": no space is left;" in str(error), error
    else:
        raise AssertionError(build)
    assert store.keys("attack") == ["first"] and not any((store.root / "unfinished").iterdir())
write_atomically(store.root / "note", "old")
try:
    write_atomically(store.root / "note", bytes(3_000_000))
except UserError:
    assert (store.root / "note").read_text() == "old" and not list(store.root.glob(".*.part"))
store.put("attack", "second", lambda folder: {})
print(store.complete("attack", ["first", "second"]) == {"first", "second"})
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode != 0,
    reason="mounts a small disk, which needs a user namespace",
)
def test_a_full_disk_is_a_sentence_and_leaves_the_store_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", tmp_path, sys.executable, "-c", FILLS, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
