"""Store and results on S3, by a real server of its protocol on loopback that now and then fails or is slow."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from benchmark.execution import driver
from benchmark.io import remote
from benchmark.io.remote import Remote
from benchmark.plan import plan, preflight
from benchmark.plan.failures import NON_FINITE, UNFINISHED, Failure
from benchmark.records import mark
from benchmark.records.folder import ResultsFolder
from benchmark.store import leases
from benchmark.store.errors import DamagedError
from benchmark.store.local import FORMAT, LocalStore
from benchmark.store.remote import RemoteStore, open_store
from sande.errors import UserError
from tests.benchmark.helpers import GridFile, cell, finish, invoke, mistake
from tests.benchmark.io.s3 import SECRET, Server, failing_and_slow, never

KEY = "k" * 64
FILES = {"model.safetensors": b"whole" * 1000, "deep/tokens.json": b"{}"}


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    for name, value in (started.environment | {remote.CACHE: str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    yield started
    started.fault = never


@pytest.fixture
def uri(server: Server, tmp_path: Path) -> str:
    bucket = f"bucket-{abs(hash(tmp_path)):x}"
    Remote(f"s3://{bucket}")._fs.mkdir(bucket)
    return f"s3://{bucket}/some/store"


def elsewhere(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "elsewhere") -> RemoteStore:
    """The store as another machine sees it, which has no copy of anything."""
    monkeypatch.setenv(remote.CACHE, str(tmp_path / name))
    opened = open_store(uri)
    assert isinstance(opened, RemoteStore)
    return opened


def put(store: RemoteStore, kind: str = "attack", key: str = KEY) -> None:
    def build(folder: Path) -> dict[str, Any]:
        for name, content in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return {"content": "whole"}

    store.put(kind, key, build)


def objects(uri: str) -> set[str]:
    return set(Remote(uri).sizes())


def test_what_one_machine_puts_another_reads(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = open_store(uri)
    assert not here.has("attack", KEY)
    put(here)
    there = elsewhere(uri, monkeypatch, tmp_path)
    assert there.complete("attack", [KEY, "other"]) == {KEY}
    assert there.manifest("attack", KEY) == {"content": "whole"}
    assert not (there.path("attack", KEY) / "model.safetensors").exists(), "planning fetches no model"
    folder = there.read("attack", KEY)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert there.size("attack", KEY) == sum(map(len, FILES.values()))
    assert list((there.root / "unfinished").iterdir()) == []


def test_an_artifact_without_its_manifest_is_not_there_and_is_put_again(uri: str) -> None:
    store = open_store(uri)
    put(store)
    Remote(uri).delete(f"attack/{KEY}/manifest.json")
    assert open_store(uri).complete("attack", [KEY]) == set()
    # It is still here: it is sent, and not made anew.
    store.put("attack", KEY, lambda folder: pytest.fail("made again"))
    assert open_store(uri).complete("attack", [KEY]) == {KEY}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", b"short", "model.safetensors has 5 bytes, not 5000"),
        ("deep/tokens.json", None, "deep/tokens.json is missing"),
        ("manifest.json", b"{", "manifest.json is garbled"),
        ("manifest.json", b"\xff\x00", "manifest.json is garbled"),
    ],
)
@pytest.mark.parametrize("kind", ["attack", "evaluate"])
def test_what_is_damaged_there_is_found_by_planning(
    uri: str, kind: str, name: str, content: bytes | None, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(open_store(uri), kind)
    if content is None:
        Remote(uri).delete(f"{kind}/{KEY}/{name}")
    else:
        Remote(uri).write(f"{kind}/{KEY}/{name}", content)
    store = elsewhere(uri, monkeypatch, tmp_path)
    assert store.complete(kind, [KEY]) == set()
    (line,) = store.quarantine_damaged([(kind, KEY), (kind, "absent")])
    assert told in line
    assert f"quarantined as {uri}/damaged/{kind}-{KEY}" in line
    assert store.keys(kind) == []
    assert len(store.quarantined()) == 1
    put(store, kind)
    assert elsewhere(uri, monkeypatch, tmp_path, "third").read(kind, KEY)
    store.clear_quarantine()
    assert store.quarantined() == {}


def test_a_flipped_bit_there_is_found_by_who_fetches_it(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(open_store(uri))
    Remote(uri).write(f"attack/{KEY}/model.safetensors", b"v" + FILES["model.safetensors"][1:])
    store = elsewhere(uri, monkeypatch, tmp_path)
    assert store.has("attack", KEY)
    with pytest.raises(DamagedError, match=r"model.safetensors has other content .* quarantined as s3://"):
        store.read("attack", KEY)
    assert not store.has("attack", KEY)
    put(store)
    assert store.read("attack", KEY)


def test_what_another_machine_sets_aside_is_gone_here_at_the_next_look(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = open_store(uri)
    put(here)
    assert here.complete("attack", [KEY]) == {KEY}
    elsewhere(uri, monkeypatch, tmp_path).quarantine("attack", KEY, "of no use")
    assert here.complete("attack", [KEY]) == set()
    assert not here.has("attack", KEY)


def test_a_flipped_bit_of_the_copy_here_is_mended_from_there(uri: str) -> None:
    store = open_store(uri)
    put(store)
    (store.path("attack", KEY) / "model.safetensors").write_bytes(b"v" * 5000)
    (store.path("attack", KEY) / "manifest.json").write_bytes(b"{")
    assert open_store(uri).complete("attack", [KEY]) == {KEY}
    assert (open_store(uri).read("attack", KEY) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_errors_and_delays_are_waited_out(
    uri: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.fault = failing_and_slow()
    put(open_store(uri))
    folder = elsewhere(uri, monkeypatch, tmp_path).read("attack", KEY)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert server.failed > 5


def test_a_server_that_stays_broken_is_a_sentence_and_the_next_try_only_sends(uri: str, server: Server) -> None:
    store = open_store(uri)
    server.fault = lambda method, path: 500 if path.endswith("model.safetensors") else None
    with pytest.raises(UserError, match=r"requests fail .*run again") as caught:
        put(store)
    assert SECRET not in str(caught.value)
    server.fault = never
    assert not store.has("attack", KEY)
    store.put("attack", KEY, lambda folder: pytest.fail("made again"))
    assert store.has("attack", KEY)


def test_a_refusal_is_a_sentence_without_waiting(uri: str, server: Server) -> None:
    server.fault = lambda method, path: 403
    begin = time.perf_counter()
    with pytest.raises(UserError, match=r"access is refused .*check this machine's credentials") as caught:
        open_store(uri)
    assert time.perf_counter() - begin < 5
    assert SECRET not in str(caught.value)


def test_of_many_who_create_a_lease_one_does(uri: str) -> None:
    board = open_store(uri).lease_backend()
    start, made = threading.Barrier(6), []

    def create(number: int) -> None:
        start.wait()
        made.append(board.create("attack-x.1", str(number).encode()))

    threads = [threading.Thread(target=create, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 5 + [True]


def test_a_lease_is_renewed_taken_over_and_given_back(uri: str) -> None:
    one, two = (leases.Leases(open_store(uri).lease_backend(), lambda line: None, seconds=1.0) for _ in range(2))
    one._me |= {"machine": "another"}
    assert one.acquire("stage", [("attack", KEY)]) is None
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert two.acquire("stage", [("attack", KEY)]) is not None
    one._end.set()  # it dies
    begin = time.monotonic()
    while two.acquire("stage", [("attack", KEY)]) is not None:
        time.sleep(0.05)
    assert time.monotonic() - begin < 4
    two.close()
    assert not any(name.startswith("leases") for name in objects(uri))


def test_a_store_there_is_marked_and_other_files_are_no_store(uri: str) -> None:
    open_store(uri, create=False)
    assert objects(uri) == set()
    open_store(uri)
    assert json.loads(Remote(uri).read("store.json") or b"") == {"format": FORMAT}
    Remote(f"{uri}/other").write("thesis.txt", b"mine")
    with pytest.raises(UserError, match=r"holds files \(thesis.txt\) but is not a store"):
        open_store(f"{uri}/other")
    Remote(f"{uri}/newer").write("store.json", b'{"format": 99}')
    with pytest.raises(UserError, match="has format 99"):
        open_store(f"{uri}/newer")


def test_commands_look_after_a_store_there(uri: str, grid_file: GridFile, tmp_path: Path) -> None:
    store = open_store(uri)
    sft, osft = cell(defense="sft"), cell(defense="osft")
    for each in (sft, osft):
        finish(store, each, {"asr": 49}, {"asr": 3})
    path = grid_file(defense="sft")
    shown = invoke("plan", path, "--store", uri, "--results", tmp_path)
    assert "4 stages, 4 done" in shown.output, shown.output
    assert "2 models take" in shown.output
    assert invoke("store", "list", "--store", uri).output.splitlines()[-1].startswith(f"{uri}: 9 artifacts")
    Remote(uri).write(f"defend/{sft.defense_key}/manifest.json", b"{")
    assert "manifest.json is garbled" in invoke("store", "verify", "--store", uri).output
    assert invoke("store", "prune", path, "--store", uri, "--yes").exit_code == 0
    assert len(plan.make_plan([sft], open_store(uri)).missing) == 1
    assert open_store(uri).keys("defend") == []
    assert open_store(uri).quarantined() == {}


def test_results_are_sent_and_fetched(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = ResultsFolder(f"{uri}/grid")
    place.check_writable()
    (place.folder / "tables").mkdir(parents=True)
    for name in ("rows.parquet", "tables/a.md", "tables/b.md"):
        (place.folder / name).write_text(name)
    place.send()
    (place.folder / "tables/b.md").unlink()
    place.send()
    assert objects(f"{uri}/grid") == {"rows.parquet", "tables/a.md", mark.MARK}
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "elsewhere"))
    assert (ResultsFolder(f"{uri}/grid").fetch() / "tables/a.md").read_text() == "tables/a.md"


@pytest.mark.parametrize("name", ["../../../escaped.txt", "tables/../../escaped.txt", "tables//a.md", "./a.md"])
def test_a_name_there_that_leads_out_of_the_folder_is_not_fetched(uri: str, name: str, tmp_path: Path) -> None:
    place = Remote(uri)
    place.write("grid/rows.parquet", b"rows")
    bucket, _, root = place._root.partition("/")
    place._fs.call_s3("put_object", Bucket=bucket, Key=f"{root}/grid/{name}", Body=b"theirs")
    with pytest.raises(UserError, match=r"the name of a file, .* leads out of its folder; use another place"):
        ResultsFolder(f"{uri}/grid").fetch()
    assert not list(tmp_path.rglob("escaped.txt"))


def test_remote_files_of_others_are_neither_replaced_nor_removed(uri: str, grid_file: GridFile, tmp_path: Path) -> None:
    arguments = ["run", grid_file(), "--store", tmp_path / "store", "--results", uri]
    for name in ("README.md", "tables/asr.md"):
        Remote(uri).write(f"small/{name}", b"mine")
        assert f"{name} is not a file that sande-bench wrote" in mistake(*arguments)
        assert Remote(uri).read(f"small/{name}") == b"mine"
        Remote(uri).delete(f"small/{name}")
    place = ResultsFolder(f"{uri}/small")
    for name in ("rows.parquet", "tables/a.md"):
        (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / name).write_text(name)
    place.send()
    others = {"tables/notes.md", "unfinished/notes.md", "notes.md"}
    for name in others:
        Remote(uri).write(f"small/{name}", b"mine")
    place = ResultsFolder(f"{uri}/small")
    (place.folder / "tables/a.md").unlink()
    place.check_writable()
    place.send()
    assert objects(f"{uri}/small") == {"rows.parquet", mark.MARK, *others}


def test_an_interrupted_run_leaves_a_complete_report_there(
    uri: str, store: LocalStore, grid_file: GridFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, path = finish(store, cell(), {"asr": 49}), grid_file()
    arguments = ["run", path, "--store", store.root, "--results", uri]
    assert invoke(*arguments).exit_code == 0
    complete = objects(f"{uri}/small")
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "elsewhere"))  # a machine that has no copy of it
    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(driver, "run", lambda plan, *_, **__: dict.fromkeys(plan.stages, UNFINISHED))
    store.remove("evaluate", done.evaluation_key(done.metrics[0]))
    ended = invoke(*arguments)
    assert ended.exit_code == 130
    assert f"Measured so far: {uri}/small/unfinished/README.md" in ended.stderr
    partial = {name for name in objects(f"{uri}/small") if name.startswith("unfinished/")}
    assert {"unfinished/README.md", "unfinished/rows.parquet"} <= partial
    assert objects(f"{uri}/small") - partial == complete
    finish(store, cell(), {"asr": 49})
    assert invoke(*arguments).exit_code == 0
    assert objects(f"{uri}/small") == complete


def test_a_complete_report_there_stays_where_its_cells_fail_in_a_later_run(
    uri: str, store: LocalStore, grid_file: GridFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["run", grid_file(), "--results", uri, "--store"]
    finish(store, cell(), {"asr": 49})
    assert invoke(*arguments, store.root).exit_code == 0
    complete, rows = objects(f"{uri}/small"), Remote(uri).read("small/rows.parquet")
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "elsewhere"))  # a machine that has no copy of it
    monkeypatch.setattr(preflight, "check", lambda *_: None)
    nan = Failure("loss is nan", NON_FINITE)
    monkeypatch.setattr(driver, "run", lambda plan, *_, **__: dict.fromkeys(plan.stages, nan))
    ended = invoke(*arguments, tmp_path / "other")
    assert ended.exit_code == 1
    assert f"{uri}/small: 1 of its cells failed now, so its complete report stays" in ended.stdout
    assert Remote(uri).read("small/rows.parquet") == rows
    beside = {name for name in objects(f"{uri}/small") if name.startswith("unfinished/")}
    assert {"unfinished/README.md", "unfinished/rows.parquet"} <= beside
    assert objects(f"{uri}/small") - beside == complete
    Remote(uri).delete("small/rows.parquet")
    assert invoke(*arguments, tmp_path / "other").exit_code == 1
    assert objects(f"{uri}/small") >= {"README.md", "rows.parquet"}, "nothing is left there to be kept"
    assert Remote(uri).read("small/rows.parquet") != rows


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://no-such-bucket-here/store", "no such bucket"),
        ("nosuch://place/store", "no file system is called 'nosuch'"),
        ("s3://id:secret@bucket/store", "holds credentials or options"),
        ("s3://bucket/store?secret=x", "holds credentials or options"),
        ("gs://bucket/store", "pip install 'sande-bench[gcs]'"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line(
    server: Server, grid_file: GridFile, tmp_path: Path, place: str, told: str
) -> None:
    line = mistake("run", grid_file(), "--store", place, "--results", tmp_path)
    assert told in line
    assert "secret" not in line
    line = mistake("run", grid_file(), "--results", place, "--store", tmp_path / "store")
    assert told in line
    assert "secret" not in line


def test_a_server_that_is_not_there_is_one_line(
    server: Server, grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    S3FileSystem.clear_instance_cache()  # which have the other address
    line = mistake("run", grid_file(), "--store", "s3://bucket/store", "--results", tmp_path)
    assert "requests fail" in line
    assert SECRET not in line
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
