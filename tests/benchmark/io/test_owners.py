"""Owners: a process is known by number, start and machine, and none is taken for dead that may live."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.io import owners
from benchmark.io.files import clear_parts, part_suffix
from benchmark.io.owners import SILENT, Owner, alive, is_left, machine, me, parse
from tests.users import CONTAINERS, in_a_container

WHO = "from benchmark.io import owners; print(owners.me())"


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path


def test_an_owner_is_written_and_read() -> None:
    assert parse(str(me())) == me()
    assert me().process == os.getpid()
    assert me().started > 0
    assert not me().has_ended


def test_another_process_of_the_same_number_is_another_owner() -> None:
    assert alive(os.getpid(), me().started)
    assert Owner(os.getpid(), me().started - 1, machine()).has_ended


def test_a_process_that_ended_is_seen_to_have_even_if_nobody_asked() -> None:
    ended = subprocess.Popen(
        [sys.executable, "-c", WHO], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert ended.stdout
    owner = parse(ended.stdout.readline().strip())
    assert owner
    assert owner.process == ended.pid
    assert owner.has_ended
    ended.communicate()
    assert owner.has_ended


@CONTAINERS
def test_a_process_in_a_container_with_this_host_name_is_of_another_machine() -> None:
    there = parse(in_a_container(WHO))
    assert there
    assert there.machine != machine()
    assert not there.has_ended


@pytest.mark.parametrize("number", [0, -1, 2**31, 10**40, True, 7.0, "7", None])
def test_what_is_no_number_of_a_process_is_taken_to_live(number: object) -> None:
    assert alive(number)


@given(text=st.text(max_size=60) | st.from_regex(r"[0-9]{0,40}(-[0-9]{0,30})?@[0-9a-f]{0,20}(@.*)?", fullmatch=True))
def test_any_text_names_an_owner_or_none(text: str) -> None:
    owner = parse(text)
    assert owner is None or owner.has_ended in (True, False)


def test_work_of_another_machine_is_left_after_a_day_of_silence(tmp_path: Path) -> None:
    there, work = Owner(1, 1, "0" * 16), tmp_path / "work"
    work.mkdir()
    assert not is_left(work, there)
    (work / "file").write_text("")
    aged(work, 2 * SILENT)
    assert not is_left(work, there), "a file in it is new"
    aged(work / "file", 2 * SILENT)
    aged(work, 2 * SILENT)
    assert is_left(work, there)
    assert not is_left(work, me()), "this process lives, however long it is silent"
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_work_in_progress_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "RENEWED", 0.05)
    work, gone = tmp_path / "work", tmp_path / "gone"
    renewal = owners._Renewal()
    for folder in (work, gone):
        folder.mkdir()
        renewal.add(aged(folder, 1000))
    gone.rmdir()
    end = time.monotonic() + 20
    while time.time() - work.stat().st_mtime > 500 or gone in renewal._folders:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not gone.exists()


def test_parts_that_cannot_be_removed_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Owner(me().process, me().started - 1, machine())
    for name in (".a", ".b"):
        (tmp_path / f"{name}.{ended}.part").write_text("")
    (tmp_path / f".own{part_suffix()}").write_text("")

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith(".a"):
            raise PermissionError(13, "Permission denied", str(path))
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", refused)
    clear_parts(tmp_path)
    assert sorted(path.name[:4] for path in tmp_path.iterdir()) == [f".a.{str(ended)[0]}", ".own"]
