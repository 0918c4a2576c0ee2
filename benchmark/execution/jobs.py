"""Submit, follow and stop a grid as a job on a running Ray cluster, by Ray's job API.

Ray uploads a folder with the program's own modules and the files of the grid. The libraries are those of the cluster;
its nodes have to reach the store and the results.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import benchmark
import sande
from benchmark.execution.provenance import CODE_VERSION, code_version
from benchmark.grid import load, shipped
from sande.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


# Variables that a run reads, which a job gets if they are set here. Ray writes the environment of a job into its logs
# and shows it in its dashboard, so none is a secret: nodes have their own token of the Hub and keys of a bucket.
PASSED = (
    *(
        "SANDE_DATA_DIR",
        "SANDE_COMPUTE_TYPE",
        "HF_HOME",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "WANDB_PROJECT",
    ),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),  # address of a store
)
_WITH_PASSWORD = re.compile(r"://[^/]*@")
STOP_SECONDS = 60  # from SIGTERM to SIGKILL: time to write the rows of what is done; Ray's default is 3
MOST_MIB = 50.0  # of an upload, which has 1.5 MiB; Ray's dashboard takes 100
PORT = 8265
INTERRUPTED, STOPPED = 130, 143
COLUMNS = ("job", "state", "began", "took", "command")  # of the table of jobs
EXIT_CODES = (0, 1, 2, INTERRUPTED, STOPPED)  # of `sande-bench run`


def submit(
    grid: Path,
    address: str,
    store: str,
    results: str,
    options: Sequence[str] = (),
    scale: str | None = None,
    passed: Iterable[str] = (),
) -> str:
    """Start `sande-bench run` of a grid on a cluster.

    Args:
        grid: file, or a plain name as in `sande-bench list grids`.
        address: the cluster's dashboard, http://host:8265.
        store: absolute path that every node sees, or a URI.
        results: the same.
        options: further options of `run`, as words of a command line.
        scale: as for `run`.
        passed: names of variables of this environment that the job gets on top of `PASSED`.

    Returns:
        The job's submission id.

    Raises:
        UserError: the grid or one of its files is missing, a folder would be lost with the job, or the cluster cannot
            be reached or refuses.
    """
    for option, place in (("--store", store), ("--results", results)):
        _refuse_if_lost(option, place)
    environment = _environment(passed)
    with tempfile.TemporaryDirectory(prefix="sande-bench-") as folder:
        entry = pack(grid, Path(folder), scale)
        words = ["python", "-m", "benchmark", "run", entry, "--store", store, "--results", results, *options]
        client = connect(address)
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(entry).stem)
        with _answering(address):
            return str(
                client.submit_job(
                    entrypoint=shlex.join([*words, *(["--scale", scale] if scale else [])]),
                    submission_id=f"{name}-{uuid.uuid4().hex[:8]}",
                    runtime_env={"working_dir": folder, "env_vars": environment},
                    metadata={"grid": name},
                )
            )


def pack(grid: Path, folder: Path, scale: str | None = None) -> str:
    """Copy the files of a job into an empty folder: the two packages, the grid, the grids it includes, their scales.

    Returns:
        Path of the grid below the folder.

    Raises:
        UserError: a file of the grid is missing, or the folder is too large to upload.
    """
    files = load.files(grid, scale)
    for package in (sande, benchmark):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in files:
        target = folder / shipped.FOLDER / file.relative_to(files[0].parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    sizes = {path: path.stat().st_size / 2**20 for path in folder.rglob("*") if path.is_file()}
    largest = max(sizes, key=sizes.__getitem__)
    if sum(sizes.values()) > MOST_MIB:
        raise UserError(
            f"{largest.relative_to(folder)}: program and grid have {sum(sizes.values()):.0f} MiB, "
            f"{sizes[largest]:.0f} of them in this file, and a job takes {MOST_MIB:.0f}; remove it"
        )
    return str(shipped.FOLDER / files[0].name)


def _environment(passed: Iterable[str]) -> dict[str, str]:
    missing = [name for name in passed if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: this environment has no such variable; set it, or remove the option")
    wanted = shared_environment() | {name: os.environ[name] for name in passed}
    return wanted | {CODE_VERSION: code_version(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}


def shared_environment() -> dict[str, str]:
    """Return the variables of `PASSED` that are set, without addresses that hold a password."""
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {name: value for name, value in found.items() if not _WITH_PASSWORD.search(value)}


def _refuse_if_lost(option: str, place: str) -> None:
    if not place.startswith("/") and "://" not in place:
        raise UserError(
            f"{option} {place}: a job runs in a copy of this program that is removed at its end; choose a folder that "
            "every node sees, as an absolute path, or a URI such as s3://bucket/folder"
        )


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster's job server, with the user's token (`RAY_AUTH_TOKEN`, or Ray's file in ~/.ray).

    Raises:
        UserError: the server cannot be reached, is not a Ray head, or refuses the token.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else PORT)
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"--address {address}: not the address of a Ray dashboard; use one such as http://host:{PORT}")
    if reason := unreachable(host, port):
        raise UserError(
            f"no Ray cluster at '{address}' ({reason}); check --address, and that its dashboard listens there"
        )
    url = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path}"
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it on import
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # else Ray takes RAY_ADDRESS, which is not a dashboard
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # this module reports uploads and tokens itself
    with _answering(address):
        return JobSubmissionClient(url)


def unreachable(host: str, port: int) -> str:
    """Return why a server does not answer within five seconds, or an empty text; Ray would try for minutes."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""


@contextmanager
def _answering(address: str, job: str = "") -> Iterator[None]:
    """Raise errors of Ray's client as mistakes of the user.

    Raises:
        UserError: instead of any error of the client.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        answer = "refuses this token" if "invalid" in str(error).lower() else "requires a token"
        raise UserError(
            f"--address {address}: the cluster {answer}; set RAY_AUTH_TOKEN, or ~/.ray/auth_token, to the one that "
            "'ray get-auth-token' shows on its head"
        ) from None
    except (requests.RequestException, ConnectionError, RuntimeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        if job and "404" in reason:
            raise UserError(
                f"job {job}: not known to the cluster at {address}; use one that 'sande-bench status --address "
                f"{address}' lists"
            ) from None
        raise UserError(
            f"--address {address}: no usable job server ({reason}); check the address, and that the head has "
            "ray[default]"
        ) from None


def follow(job: str, address: str, write: Callable[[str], None]) -> int:
    """Follow a job's log until the job ends.

    Args:
        job: its submission id.
        address: the cluster's dashboard.
        write: receives pieces of the log, from its beginning.

    Returns:
        The exit code of the run; 143 where the job was stopped; 1 where it has no exit code of its own.
    """
    client = connect(address)

    async def tail() -> None:
        async for piece in client.tail_job_logs(job):
            write(piece)

    with _answering(address, job):
        details = client.get_job_info(job)
        asyncio.run(tail())
        details = _ended(client, job)
    code, reason = outcome(details)
    if reason:
        write(f"{reason}\n")
    return code


def outcome(details: JobDetails) -> tuple[int, str]:
    """Return the exit code for a job that ended, and a sentence on its end where the log has none."""
    status = str(details.status.value)
    if status == "STOPPED":
        return STOPPED, f"{details.submission_id} was stopped"
    code = details.driver_exit_code
    if code is None:  # it never ran, or was lost with its node
        return 1, f"{details.submission_id} failed: {(details.message or 'no message').strip().splitlines()[0]}"
    if code < 0:
        code = 128 - code  # as a shell has it for a signal
    if code in EXIT_CODES:
        return code, ""
    return 1, f"{details.submission_id} failed with exit code {code}"


def _ended(client: JobSubmissionClient, job: str) -> JobDetails:
    while not (details := client.get_job_info(job)).status.is_terminal():
        time.sleep(0.5)
    return details


def status(address: str, job: str | None = None) -> dict[str, list[str]]:
    """Return a table, by head, of one job or of all that were submitted, the earliest first."""
    client = connect(address)
    with _answering(address, job or ""):
        found = [client.get_job_info(job)] if job else client.list_jobs()
    submitted = sorted((one for one in found if one.submission_id), key=lambda one: one.start_time or 0)
    rows = [_row(one) for one in submitted]
    return {head: [row[number] for row in rows] for number, head in enumerate(COLUMNS)}


def _row(details: Any) -> tuple[str, ...]:
    begin, end = ((stamp or time.time() * 1000) / 1000 for stamp in (details.start_time, details.end_time))
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begin))
    return str(details.submission_id), str(details.status.value), began, f"{end - begin:.0f} s", details.entrypoint


def stop(address: str, job: str) -> str:
    """Ask a job to end, which leaves it a minute to write the rows of what is done; wait for its end.

    Returns:
        A sentence with the job's final state.
    """
    client = connect(address)
    with _answering(address, job):
        running = not client.get_job_info(job).status.is_terminal()
        client.stop_job(job)
        state = _ended(client, job).status.value
    return f"{job} {'ended' if running else 'had ended before'}: {state}"
