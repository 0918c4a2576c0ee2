"""Leases: one holder, taken over when it is dead or silent, whatever clocks and machines."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.io.remote import AT_ONCE
from benchmark.store.leases import THIS_RUN, FileLeases, Leases, holders

ROOT = Path(__file__).parents[3]
A, B, C = ("attack", "a" * 64), ("attack", "b" * 64), ("evaluate", "c" * 64)
HOLD = """
import sys, time
from pathlib import Path
from benchmark.store.leases import FileLeases, Leases

leases = Leases(FileLeases(Path(sys.argv[1])), print, seconds=float(sys.argv[2]))
sys.stdin.readline()
print(leases.acquire("use", [("attack", "a" * 64)]), flush=True)
sys.stdin.readline()
leases.close()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "leases"


@pytest.fixture
def made() -> Iterator[list[Leases]]:
    found: list[Leases] = []
    yield found
    for leases in found:
        leases.close()


class Machine:
    """A driver that says it is on another machine, so that its process cannot be looked for."""

    def __init__(self, folder: Path, made: list[Leases], name: str, seconds: float = 0.6) -> None:
        self.said: list[str] = []
        self.leases = Leases(FileLeases(folder), self.said.append, seconds)
        self.leases._me |= {"process": 7, "machine": f"{name}/pid:[1]"}
        made.append(self.leases)
        self.acquire, self.release = self.leases.acquire, self.leases.release

    def die(self) -> None:
        """Without giving anything back."""
        self.leases._end.set()
        self.leases._held.clear()


def process(folder: Path, seconds: float) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def holding(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds A."""
    started = process(folder, seconds)
    assert started.stdin is not None
    assert started.stdout is not None
    started.stdin.write("\n")
    started.stdin.flush()
    assert started.stdout.readline() == "None\n"
    return started


def test_what_one_holds_another_does_not_get_until_it_is_released(folder: Path, made: list[Leases]) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    assert one.acquire("stage", [A]) is None
    assert two.acquire("stage", [A]) == "process 7 on one"
    assert two.acquire("stage", [B]) is None
    one.release("stage")
    assert two.acquire("stage", [A]) is None
    two.release("stage")
    assert list(folder.iterdir()) == []


def test_all_or_none_of_several_are_taken(folder: Path, made: list[Leases]) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    assert one.acquire("stage", [B, C]) is None
    assert two.acquire("stage", [A, B]) == "process 7 on one"
    assert one.acquire("other", [A]) is None


def test_a_use_may_take_again_what_it_holds_and_another_of_the_same_run_may_not(folder, made) -> None:
    one = Machine(folder, made, "one")
    assert one.acquire("first", [A]) is None
    assert one.acquire("first", [A, B]) is None
    assert one.acquire("second", [B]) == THIS_RUN


def test_a_living_holder_keeps_its_lease(folder: Path, made: list[Leases]) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    one.acquire("stage", [A])
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert two.acquire("stage", [A]) is not None
        time.sleep(0.05)


def test_a_silent_holder_is_waited_for_no_longer_than_a_lease(folder: Path, made: list[Leases]) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    one.acquire("stage", [A])
    one.die()
    begin = time.monotonic()
    while two.acquire("stage", [A]) is not None:
        time.sleep(0.02)
    assert 0.6 <= time.monotonic() - begin < 1.2
    assert two.said == ["attack-aaaaaaaa: taken over from process 7 on one, which has ended or sends no heartbeat"]
    two.release("stage")
    assert list(folder.iterdir()) == []


def test_clocks_do_not_matter(folder: Path, made: list[Leases]) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    one.acquire("stage", [A])
    one.die()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert two.acquire("stage", [A]) is not None


def test_who_was_taken_over_from_while_it_slept_does_not_disturb_the_new_holder(folder, made) -> None:
    one, two, three = (Machine(folder, made, name) for name in ("one", "two", "three"))
    one.acquire("stage", [A])
    held = dict(one.leases._held)
    one.die()
    while two.acquire("stage", [A]) is not None:
        time.sleep(0.02)
    one.leases._held.update(held)
    one.release("stage")  # it wakes, and is done
    assert three.acquire("stage", [A]) == "process 7 on two"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"machine": 1}', b"\xff"])
def test_a_lease_that_cannot_be_read_is_held_by_somebody(folder: Path, made: list[Leases], content: bytes) -> None:
    one, two = Machine(folder, made, "one"), Machine(folder, made, "two")
    one.acquire("stage", [A])
    one.die()
    (path,) = folder.iterdir()
    path.write_bytes(content)
    assert two.acquire("stage", [A]) == "another run"
    time.sleep(0.7)
    assert two.acquire("stage", [A]) is None


def test_where_no_lease_can_be_written_work_goes_on(tmp_path: Path, made: list[Leases]) -> None:
    (tmp_path / "file").write_text("")
    one = Machine(tmp_path / "file", made, "one")
    assert one.acquire("stage", [A]) is None


def test_many_at_once_and_one_gets_them(folder: Path, made: list[Leases]) -> None:
    drivers = [Machine(folder, made, f"m{number}") for number in range(8)]
    start, got = threading.Barrier(8), []

    def run(driver: Machine) -> None:
        start.wait()
        got.append(driver.acquire("stage", [A, B]))

    threads = [threading.Thread(target=run, args=[driver]) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(None) <= 1  # all may have met somebody who met another
    assert len(list(folder.iterdir())) == 2 * got.count(None)


def test_a_killed_process_of_this_machine_is_not_waited_for(folder: Path, made: list[Leases]) -> None:
    holder = holding(folder, 60)
    mine = Leases(FileLeases(folder), print)
    made.append(mine)
    assert mine.acquire("stage", [A]) == f"process {holder.pid} on {os.uname().nodename}"
    assert holders(FileLeases(folder)) == [f"process {holder.pid} on {os.uname().nodename}"]
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert mine.acquire("stage", [A]) is None


def test_a_stopped_process_is_taken_over_from_after_a_lease(folder: Path, made: list[Leases]) -> None:
    holder = holding(folder, 1)
    mine = Leases(FileLeases(folder), print, seconds=1)
    made.append(mine)
    holder.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    while mine.acquire("stage", [A]) is not None:
        time.sleep(0.02)
    assert 1 <= time.monotonic() - begin < 2
    holder.send_signal(signal.SIGCONT)
    holder.communicate("\n", timeout=20)
    other = Machine(folder, made, "other")
    assert other.acquire("stage", [A]) is not None


def test_of_processes_that_start_together_one_gets_it(folder: Path) -> None:
    both = [process(folder, 60) for _ in range(3)]
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    said = [each.stdout.readline() for each in both if each.stdout]
    assert said.count("None\n") == 1
    for each in both:
        each.communicate("\n", timeout=20)
    assert list(folder.iterdir()) == []


def test_leases_of_the_dead_are_cleared_when_holders_are_asked_for(folder: Path) -> None:
    holder = holding(folder, 60)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert len(list(folder.iterdir())) == 1
    assert holders(FileLeases(folder)) == []
    assert list(folder.iterdir()) == []


def test_a_lease_says_who_holds_it(folder: Path) -> None:
    holder = holding(folder, 60)
    (path,) = folder.iterdir()
    assert json.loads(path.read_bytes())["process"] == holder.pid
    holder.communicate("\n", timeout=20)


def test_a_copy_such_as_tune_makes_holds_nothing(folder: Path, made: list[Leases]) -> None:
    mine = Leases(FileLeases(folder), print)
    made.append(mine)
    mine.acquire("stage", [A])
    copied = pickle.loads(pickle.dumps(mine))
    made.append(copied)
    copied.close()
    assert len(list(folder.iterdir())) == 1


def test_a_request_that_was_made_twice_as_its_answer_was_lost_is_a_lease(folder: Path, made: list[Leases]) -> None:
    class Lossy(FileLeases):
        def create(self, name: str, content: bytes) -> bool:
            super().create(name, content)
            return super().create(name, content)

    mine = Leases(Lossy(folder), print)
    made.append(mine)
    assert mine.acquire("stage", [A]) is None
    other = Machine(folder, made, "other")
    assert other.acquire("stage", [A]) is not None


class Bucket:
    """Leases in memory whose heartbeats take a while to write, and perhaps to delete, as in a bucket.

    Attributes:
        files: content, by name.
        seconds: that a heartbeat takes.
        deleting: seconds that a deletion takes.
        listed: how often the names were asked for.
        begun: set when the first heartbeat of a round begins.
        written: the heartbeats so far, by name.
        at_once: the most that were being written or deleted at a time.
    """

    def __init__(self, seconds: float, deleting: float = 0.0) -> None:
        self.files: dict[str, bytes] = {}
        self.seconds, self.deleting = seconds, deleting
        self.listed = 0
        self.begun = threading.Event()
        self.written: Counter[str] = Counter()
        self.at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        self.listed += 1
        return list(self.files)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def create(self, name: str, content: bytes) -> bool:
        return self.files.setdefault(name, content) is content

    def write(self, name: str, content: bytes) -> None:
        self._wait(self.seconds)
        with self._lock:
            self.files[name] = content
            self.written[name] += 1

    def delete(self, name: str) -> None:
        self._wait(self.deleting)
        self.files.pop(name, None)

    def _wait(self, seconds: float) -> None:
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        self.begun.set()
        time.sleep(seconds)
        with self._lock:
            self._now -= 1


def in_a_round(bucket: Bucket, made: list[Leases], held: int) -> Leases:
    """Leases of the use "stage", and A for "last", with the first heartbeats of a round being written."""
    leases = Leases(bucket, print, seconds=1.2)
    made.append(leases)
    assert leases.acquire("stage", [("evaluate", f"{number:064d}") for number in range(held)]) is None
    assert leases.acquire("last", [A]) is None
    bucket.written.clear()
    bucket.begun.clear()
    assert bucket.begun.wait(20)
    return leases


def test_a_driver_does_not_wait_for_the_heartbeats_of_its_other_leases(made: list[Leases]) -> None:
    bucket = Bucket(0.025)
    leases = in_a_round(bucket, made, 100)
    assert leases.acquire("other", [B]) is None
    leases.release("other")
    assert bucket.written.total() < 50, "it waited"


def test_several_heartbeats_are_written_at_once_and_not_all(made: list[Leases]) -> None:
    bucket = Bucket(0.05)
    begin = time.monotonic()
    in_a_round(bucket, made, 40)
    while len(bucket.written) < 40 and time.monotonic() - begin < 20:
        time.sleep(0.01)
    assert time.monotonic() - begin < 1.2, "it takes 2 s to write them one after the other"
    assert 1 < bucket.at_once <= AT_ONCE


@pytest.mark.parametrize("at_the_end", [True, False])
def test_several_leases_are_released_at_once_and_not_all(made: list[Leases], at_the_end: bool) -> None:
    bucket = Bucket(0.0, deleting=0.05)
    leases = Leases(bucket, print)
    made.append(leases)
    assert leases.acquire("stage", [("evaluate", f"{number:064d}") for number in range(3 * AT_ONCE)]) is None
    bucket.listed = 0
    leases.close() if at_the_end else leases.release("stage")
    assert bucket.files == {}
    assert 1 < bucket.at_once <= AT_ONCE
    assert bucket.listed == 1, "a request for each lease"


def test_a_lease_that_is_released_during_its_heartbeat_does_not_come_back(made: list[Leases]) -> None:
    bucket = Bucket(0.05)
    leases = in_a_round(bucket, made, 3 * AT_ONCE)
    leases.release("stage")
    assert list(bucket.files) == [f"{'-'.join(A)}.1"]
    leases.close()  # which waits for the end of the round
    assert bucket.files == {}


def test_a_lease_that_is_released_before_its_heartbeat_gets_none(made: list[Leases]) -> None:
    bucket = Bucket(0.05)
    leases = in_a_round(bucket, made, 3 * AT_ONCE)
    leases.release("last")
    leases.close()
    assert bucket.files == {}
    assert bucket.written[f"{'-'.join(A)}.1"] == 0


def test_a_lease_that_is_acquired_again_during_a_round_is_renewed(made: list[Leases]) -> None:
    bucket = Bucket(0.05)
    leases = in_a_round(bucket, made, 3 * AT_ONCE)
    leases.release("stage")
    assert leases.acquire("again", [("evaluate", f"{0:064d}")]) is None
    name = f"evaluate-{0:064d}.1"
    before = bucket.written[name]
    begin = time.monotonic()
    while bucket.written[name] == before and time.monotonic() - begin < 20:
        time.sleep(0.01)
    assert bucket.written[name] > before


def test_the_holder_notices_that_its_lease_was_taken_over(made: list[Leases]) -> None:
    bucket = Bucket(0.0)
    leases = Leases(bucket, print, seconds=0.3)
    made.append(leases)
    assert leases.acquire("stage", [A]) is None
    bucket.files[f"{'-'.join(A)}.2"] = b"another"
    begin = time.monotonic()
    while not (holder := leases.acquire("stage", [A])) and time.monotonic() - begin < 20:
        time.sleep(0.02)
    assert holder == "another run"


def test_heartbeats_go_on_after_a_round_in_which_no_thread_could_be_started(
    made: list[Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    refused, bucket = threading.Event(), Bucket(0.0)
    with monkeypatch.context() as patch:
        patch.setattr("benchmark.store.leases.ThreadPoolExecutor", refuse)
        leases = Leases(bucket, print, seconds=0.3)
        made.append(leases)
        leases.acquire("stage", [A])
        assert refused.wait(20)
    assert bucket.begun.wait(20)
