"""Job servers that are silent, slow, endless, that close or lie, and odd addresses: a sentence in good time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import ray
from click.testing import Result
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from benchmark.execution import cluster, job_server, jobs
from sande.errors import UserError
from tests.benchmark.helpers import invoke, mistake, process

FOLDERS = ["--store", "/shared/store", "--results", "/shared/results"]
COMMANDS = (["status"], ["status", "g-1"], ["logs", "g-1"], ["stop", "g-1"], ["submit", "quickstart", *FOLDERS])
PASSWORD = "planted"
SECONDS = 0.3  # for an answer, in these tests
MOST = 2**20  # bytes of one
GENEROUS = 60.0  # seconds until a command must have ended, on a machine that does other things too

PAUSE = threading.Event()  # not `time.sleep`, which other tests replace while a thread of these may still end

Answer = Callable[[socket.socket], None]


def silent(peer: socket.socket) -> None:
    while peer.recv(2**16):
        pass


def slow_head(peer: socket.socket) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000:
        peer.sendall(bytes([letter]))
        PAUSE.wait(0.05)


def slow_body(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        peer.sendall(b" ")
        PAUSE.wait(0.05)


def endless_head(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.sendall(b"X-More: " + b"a" * 1000 + b"\r\n")


def endless_body(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        peer.sendall(b"[" * 2**16)


def continuing(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def closing(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_RDWR)


def noise(peer: socket.socket) -> None:
    peer.sendall(random.Random(1).randbytes(4096))


def saying(body: str, status: str = "200 OK", *head: str) -> Answer:
    def answer(peer: socket.socket) -> None:
        content = body.encode()
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *head, "", ""]
        peer.sendall("\r\n".join(lines).encode() + content)

    return answer


ANSWERS: dict[str, Answer] = {
    "silent": silent,
    "slow head": slow_head,
    "slow body": slow_body,
    "endless head": endless_head,
    "endless body": endless_body,
    "continuing": continuing,
    "closing": closing,
    "noise": noise,
    "no HTTP": lambda peer: peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "half": lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"),
    "page": saying("<html>"),
    "nothing": saying(""),
    "error": saying("out of\n order", "500 Internal Server Error"),
    "redirect": saying("", "307 Temporary Redirect", f"Location: http://me:{PASSWORD}@127.0.0.1:1/api?{PASSWORD}"),
    "to itself": saying("", "302 Found", "Location: /api/version"),
    "not unpacked": saying("no gzip", "200 OK", "Content-Encoding: gzip"),
    **{text: saying(text) for text in ("null", "1e999", '"ab"', "[]", "[1]", "{}", '{"ray_version": 5}', "[" * 9999)},
    "odd version": saying('{"ray_version": "\\u001b[31m not a version"}'),
    "old": saying('{"ray_version": "0.1"}'),
    "odd job": saying('{"type": "SUBMISSION", "status": "DONE", "entrypoint": 5}'),
    "odd times": saying(json.dumps([{"type": "SUBMISSION", "submission_id": "g", "status": "FAILED", "entrypoint": "x",
                                     "start_time": 10**300}])),
}  # fmt: skip


class Server:
    """Answers each request by a function; with `polite`, what Ray's client asks for first as a head does."""

    def __init__(self, answer: Answer, polite: bool) -> None:
        self._answer, self._polite, self._peers = answer, polite, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                peer, _ = self._listener.accept()
                self._peers.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := peer.recv(2**16)):
                    return
                head += piece
            if self._polite and b"/api/version" in head:
                saying(json.dumps({"ray_version": ray.__version__}))(peer)
            else:
                self._answer(peer)
            peer.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._listener, *self._peers):
            with contextlib.suppress(OSError):  # gone
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def serving() -> Iterator[Callable[[Answer, bool], str]]:
    servers: list[Server] = []

    def start(answer: Answer, polite: bool) -> str:
        servers.append(Server(answer, polite))
        return servers[-1].address

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time, little room, and jobs that are packed at once."""

    def pack(grid: Path, folder: Path, *rest: object) -> str:
        (folder / "grid.yaml").write_text("x")
        return "grid.yaml"

    monkeypatch.setattr(job_server, "ANSWER_SECONDS", SECONDS)
    monkeypatch.setattr(job_server, "MOST_ANSWER", MOST)
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0)
    monkeypatch.setattr(jobs, "pack", pack)


def ends_with_a_sentence(address: str, kind: str, command: list[str]) -> None:
    begin = time.monotonic()
    line = mistake(*command, "--address", address)
    assert f"--address {address}" in line
    assert PASSWORD not in line
    assert len(line) < 1000
    if kind in ("silent", "slow body"):
        assert "no whole answer within 0.3 s" in line
    if kind == "endless body":
        assert "an answer is larger than 1 MiB" in line or "no whole answer" in line
    if kind == "redirect":
        assert "it redirects to http://***@127.0.0.1:1/api?***; set --address" in line
    assert time.monotonic() - begin < GENEROUS


def misses(kind: str, command: list[str]) -> bool:
    """What a head may well say, or has a test of its own."""
    return (kind, command) in (("[]", ["status"]), ("odd times", ["status"]))


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("number", range(len(ANSWERS)), ids=list(ANSWERS))
def test_a_command_ends_with_a_sentence_whatever_the_server_does(
    serving: Callable[[Answer, bool], str], number: int
) -> None:
    """One of the commands, at its first request or at a later one; the slow test below tries all."""
    kind, command = list(ANSWERS)[number], COMMANDS[number % len(COMMANDS)]
    polite = not misses(kind, command) and number % 3 > 0
    ends_with_a_sentence(serving(ANSWERS[kind], polite), kind, command)


@pytest.mark.slow
@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("polite", [False, True], ids=["from the start", "after the version"])
@pytest.mark.parametrize("kind", ANSWERS)
def test_every_command_ends_with_a_sentence_whatever_the_server_does(
    serving: Callable[[Answer, bool], str], kind: str, polite: bool
) -> None:
    for command in COMMANDS:
        if not (polite and misses(kind, command)):
            ends_with_a_sentence(serving(ANSWERS[kind], polite), kind, command)


def test_a_job_with_an_impossible_time_is_a_sentence(serving: Callable[[Answer, bool], str]) -> None:
    line = mistake("status", "--address", serving(ANSWERS["odd times"], True))
    assert "no usable job server" in line


def test_a_head_without_its_agent_is_a_sentence() -> None:
    said = "Request failed with status code 500: No available agent to submit job, please try again later.."
    agent = r"Ray's agent on the head.*--dashboard-agent-listen-port"
    with pytest.raises(UserError, match=agent), job_server.answering("http://head:8265"):
        raise RuntimeError(said)


def job(state: str) -> Answer:
    return saying(json.dumps({"type": "SUBMISSION", "submission_id": "g-1", "status": state, "entrypoint": "x"}))


@pytest.mark.usefixtures("little")
def test_a_job_that_never_ends_is_not_waited_for(
    serving: Callable[[Answer, bool], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobSubmissionClient, "stop_job", lambda *_: True)
    line = mistake("stop", "g-1", "--address", serving(job("RUNNING"), True))
    assert "job g-1: still running 0.3 s after it was asked to end" in line


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("pieces", "state", "said"),
    [
        (
            ["one\n"],
            "RUNNING",
            "job g-1: its log ended at http://127.0.0.1:1, and it still runs; run 'sande-bench logs",
        ),
        (["one\n", None], "RUNNING", "no usable job server (broken)"),
    ],
)
def test_a_log_that_ends_while_the_job_runs_is_a_sentence(
    pieces: list[str | None], state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = followed(pieces, state, monkeypatch)
    assert done.exit_code == 2
    assert done.stdout == "one\n"
    assert said in done.stderr


@pytest.mark.usefixtures("little")
def test_a_log_that_stays_open_after_the_job_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    done = followed(["one\n", "…"], "SUCCEEDED", monkeypatch)
    assert (done.exit_code, done.stdout) == (0, "one\n")
    assert time.monotonic() - begin < GENEROUS


def followed(pieces: list[str | None], state: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """What `logs` does with these pieces of a log: None breaks off, an ellipsis is silent for ever."""
    details = JobDetails(
        type="SUBMISSION", submission_id="g-1", entrypoint="x", status=JobStatus(state), driver_exit_code=0
    )

    class Client:
        def get_job_info(self, job: str) -> JobDetails:
            return details

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            for piece in pieces:
                if piece is None:
                    raise RuntimeError("broken")
                if piece == "…":
                    await asyncio.sleep(1e6)
                yield piece

    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    return invoke("logs", "g-1", "--address", "http://127.0.0.1:1")


ADDRESSES = [
    "", " ", "x", "http://", "http://:8265", "http://host:port", "http://host:0", "http://host:-1", "http://host:65536",
    "host:99999", "http://[::1", "http://::1", "::1", "[::1]:8265", "http://[::1]:1", "http://ho st", "http://host\n",
    "\thttp://host", "http://a\0b", "http://\x1b[31m", "http://höst.invalid:1", "http://" + "ü" * 70,
    "http://" + "." * 300,
    "//host", "http:host", "http:///path", "ftp://host", "ray://127.0.0.1:1", "file:///etc/passwd", "auto", "local",
    "http://\udc80", "http://127.0.0.1:1/../..", "http://127.0.0.1:１", "http://😀", "javascript:1", "http://%31",
    f"http://me:{PASSWORD}@127.0.0.1:1", f"me:{PASSWORD}@127.0.0.1:1", f"http://{PASSWORD}@127.0.0.1:1",
    f"http://me:{PASSWORD}@", f"http://me:{PASSWORD}/x@127.0.0.1:1", f"http://127.0.0.1:1/?token={PASSWORD}",
    f"ray://me:{PASSWORD}@127.0.0.1:1", f"http://127.0.0.1:1#{PASSWORD}", f"http://me:{PASSWORD}@[::1",
]  # fmt: skip


def answers_with_a_sentence(address: str, command: list[str]) -> None:
    line = mistake(*command, "--address", address)
    assert "address" in line, address
    assert PASSWORD not in line, address
    assert line.isprintable(), address


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("number", range(len(ADDRESSES)))
def test_a_command_answers_an_odd_address_with_a_sentence(number: int) -> None:
    answers_with_a_sentence(ADDRESSES[number], COMMANDS[number % len(COMMANDS)])


@pytest.mark.slow
@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("address", ADDRESSES)
def test_every_command_answers_an_odd_address_with_a_sentence(address: str) -> None:
    for command in COMMANDS:
        answers_with_a_sentence(address, command)


@pytest.mark.parametrize("address", [f"ray://me:{PASSWORD}@127.0.0.1:1", f"me:{PASSWORD}@127.0.0.1:1", "[::1]:1"])
def test_a_run_shows_no_password_of_its_cluster(address: str) -> None:
    with pytest.raises(UserError, match="no Ray cluster at") as raised:
        cluster._check_reachable(address)
    assert PASSWORD not in str(raised.value)


@pytest.mark.slow
def test_a_token_that_cannot_be_sent_is_not_shown(serving: Callable[[Answer, bool], str]) -> None:
    # In a process of its own: Ray remembers the token that it found first.
    address, token = serving(ANSWERS["page"], False), f"{PASSWORD}\n{PASSWORD}"
    done = process("-m", "benchmark", "status", "--address", address, env={"RAY_AUTH_TOKEN": token})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert PASSWORD not in line


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "../version", "a?b", "a#b", "ü", "a\nb", "-", "a" * 201])
def test_what_is_no_id_of_a_job_is_a_sentence(name: str) -> None:
    for command in ("logs", "stop", "status"):
        line = mistake(command, "--address", "http://127.0.0.1:1", "--", name)
        assert "not the id of a job; use one that 'sande-bench status' lists" in line


def test_rays_client_still_sends_its_requests_in_one_place() -> None:
    changed = f"Ray {ray.__version__} changed its client of jobs; see job_client in benchmark/execution/ray_env.py"
    assert hasattr(JobSubmissionClient, "_do_request"), changed
    source = inspect.getsource(inspect.getmodule(JobSubmissionClient.__mro__[1]._do_request))
    assert source.count("= requests.") == 1, changed
    assert source.count("= requests.request(") == 1, changed
    for name in ("_address", "_cookies", "_headers", "_verify"):
        assert f"self.{name} = " in source, changed
