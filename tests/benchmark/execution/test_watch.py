"""The watch of Ray's processes, on sockets that stand for them."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmark.execution import watch
from benchmark.execution.watch import RayEndedError, Server, Watch
from tests.integration.helpers import ROOT, wait_until

GENEROUS = 30.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def server(listener: socket.socket, patience: float = 0.05, vital: bool = False) -> Server:
    return Server("raylet", "127.0.0.1", listener.getsockname()[1], patience, vital)


def never(sentence: str) -> None:
    raise AssertionError(sentence)


def test_what_listens_lives_and_what_stopped_is_raised(listener: socket.socket) -> None:
    watched = Watch([server(listener)], GENEROUS, look=0.01, end=never)
    time.sleep(0.3)
    watched.check()
    listener.close()
    assert wait_until(lambda: bool(watched.ended), GENEROUS)
    with pytest.raises(RayEndedError, match="raylet ended"):
        watched.check()


def test_a_server_that_comes_back_in_time_lives(listener: socket.socket) -> None:
    gone, port = server(listener, patience=GENEROUS), listener.getsockname()[1]
    watched = Watch([gone], GENEROUS, look=0.01, end=never)
    listener.close()
    assert wait_until(lambda: not gone.answers(), GENEROUS)
    time.sleep(0.1)
    with socket.create_server(("127.0.0.1", port)):
        assert wait_until(gone.answers, GENEROUS)
        watched.check()
    watched.close()


def test_a_driver_that_does_not_react_is_ended_with_a_sentence(listener: socket.socket) -> None:
    said: list[str] = []
    Watch([server(listener, vital=True)], 0.05, look=0.01, end=said.append)
    listener.close()
    assert wait_until(lambda: bool(said), GENEROUS)
    assert said == ["Ray's raylet ended; run again to continue"]


def test_a_driver_that_reacts_is_not(listener: socket.socket) -> None:
    said: list[str] = []
    watched = Watch([server(listener, vital=True)], 0.5, look=0.01, end=said.append)
    listener.close()
    assert wait_until(lambda: bool(watched.ended), GENEROUS)
    watched.close()
    time.sleep(0.7)
    assert said == []


def test_a_process_ends_even_where_its_main_thread_is_stuck() -> None:
    code = (
        "import socket, threading; from benchmark.execution.watch import Server, Watch\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "Watch([Server('raylet', '127.0.0.1', listener.getsockname()[1], 0.05, True)], 0.05, look=0.01)\n"
        "listener.close(); threading.Event().wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "Ray's raylet ended; run again to continue\n")


def test_rays_time_to_reconnect_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(watch.RECONNECT, "12")
    assert watch.reconnect_seconds() == 12
    monkeypatch.delenv(watch.RECONNECT)
    assert watch.reconnect_seconds() == 60
