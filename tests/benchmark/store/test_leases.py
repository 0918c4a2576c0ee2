"""Leases: one holder, taken over when it is dead or silent, whatever clocks and machines."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
