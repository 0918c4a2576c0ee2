"""Submit, follow and stop a grid, or the cleaning of a model, as a job on a running Ray cluster, by Ray's job API.

Ray uploads a folder with the program's own modules and the files that the command names. The libraries are those of the
cluster; its nodes have to reach the store, the results and the models.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import benchmark
import sande
from benchmark.execution import job_server
from benchmark.execution.job_server import answering, check_id, connect
from benchmark.execution.provenance import CODE_VERSION, code_version
from benchmark.grid import load, shipped
from benchmark.io.network import holds_secret
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
STOP_SECONDS = 60  # from SIGTERM to SIGKILL: time to write the rows of what is done; Ray's default is 3
MOST_MIB = 50.0  # of an upload, which has 2 MiB; Ray's dashboard takes 100
INTERRUPTED, STOPPED = 130, 143
COLUMNS = ("job", "state", "began", "took", "command")  # of the table of jobs
EXIT_CODES = (0, 1, 2, 3, INTERRUPTED, STOPPED)  # of `sande-bench run` and `clean`
INPUTS = "inputs"  # folder of a job with files that were beside the user
MODELS = ("", "--base", "--reference")  # what names a model for `clean`: the first word, and these options
PATHS = (*MODELS, "--incident", "--data", "--format")  # what may name a file beside the user; other words are texts


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
        _refuse_secret(option, place)
    for word in options:
        _refuse_secret("--set", word)
    environment = _environment(passed)
    with tempfile.TemporaryDirectory(prefix="sande-bench-") as folder:
        entry = pack(grid, Path(folder), scale, [word for option, word in pairwise(options) if option == "--set"])
        words = ["run", entry, "--store", store, "--results", results, *options]
        words += ["--scale", scale] if scale else []
        return _start(words, folder, environment, Path(entry).stem, address)


def submit_clean(words: Sequence[str], out: Path | None, address: str, gpus: float) -> str:
    """Start `sande-bench clean` on a node of a cluster.

    Args:
        words: command line behind `clean`, the model first. Files that it names by a relative path are uploaded; a
            folder of a model has to be an absolute path that every node sees.
        out: folder of the cleaned model, which every node sees.
        address: the cluster's dashboard, http://host:8265.
        gpus: number that the job holds.

    Returns:
        The job's submission id.

    Raises:
        UserError: a folder would be lost with the job or is not on the nodes, a file is too large, or the cluster
            cannot be reached or refuses.
    """
    _refuse_if_lost("--out", str(out or "is not set"))
    options = ["", *words]  # before each word
    for option, word in zip(options, words, strict=False):
        _refuse_secret("clean", word)
        if option in MODELS and Path(word).is_dir() and not Path(word).is_absolute():
            raise UserError(f"{word}: a folder of this machine; give it as an absolute path that every node sees")
    environment = _environment(())
    with tempfile.TemporaryDirectory(prefix="sande-bench-") as folder:
        _copy_program(Path(folder))
        there = [
            _uploaded(word, Path(folder), number) if option in PATHS else word
            for number, (option, word) in enumerate(zip(options, words, strict=False))
        ]
        _check_size(Path(folder))
        return _start(["clean", *there], folder, environment, "clean", address, entrypoint_num_gpus=gpus)


def _uploaded(word: str, folder: Path, number: int) -> str:
    """Return a word of a command line, after a copy into a job's folder where it names a file beside the user.

    Each word has a folder of its own, by its number, since files of several folders may have one name.
    """
    if Path(word).is_absolute() or not Path(word).is_file():
        return word
    target = Path(INPUTS, str(number), Path(word).name)
    (folder / target).parent.mkdir(parents=True)
    shutil.copyfile(word, folder / target)
    return str(target)


def _start(words: Sequence[str], folder: str, environment: dict[str, str], name: str, address: str, **more: Any) -> str:
    """Submit `python -m benchmark WORDS` in an uploaded folder; return the job's id."""
    client, name = connect(address), re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    with answering(address):
        return str(
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "benchmark", *words]),
                submission_id=f"{name}-{uuid.uuid4().hex[:8]}",
                runtime_env={"working_dir": folder, "env_vars": environment},
                metadata={"grid": name},
                **more,
            )
        )


def pack(grid: Path, folder: Path, scale: str | None = None, assignments: Sequence[str] = ()) -> str:
    """Copy the files of a job into an empty folder: the two packages, the grid, the grids it includes, their scales.

    Args:
        grid: as for `submit`.
        folder: empty folder.
        scale: as for `submit`.
        assignments: values of `--set`, which may name a template in the folder of the grid.

    Returns:
        Path of the grid below the folder.

    Raises:
        UserError: a file of the grid is missing, or the folder is too large to upload.
    """
    files = load.files(grid, scale, assignments)
    _copy_program(folder)
    for file in files:
        target = folder / shipped.FOLDER / file.relative_to(files[0].parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    _check_size(folder)
    return str(shipped.FOLDER / files[0].name)


def _copy_program(folder: Path) -> None:
    for package in (sande, benchmark):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _check_size(folder: Path) -> None:
    sizes = {path: path.stat().st_size / 2**20 for path in folder.rglob("*") if path.is_file()}
    largest = max(sizes, key=sizes.__getitem__)
    if sum(sizes.values()) > MOST_MIB:
        raise UserError(
            f"{largest.relative_to(folder)}: program and files have {sum(sizes.values()):.0f} MiB, "
            f"{sizes[largest]:.0f} of them in this file, and a job takes {MOST_MIB:.0f}; remove it, or give an "
            "absolute path that every node sees"
        )


def _environment(passed: Iterable[str]) -> dict[str, str]:
    missing = [name for name in passed if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: this environment has no such variable; set it, or remove the option")
    asked = {name: os.environ[name] for name in passed}
    for name in PASSED:
        if name in os.environ and name not in asked:
            _refuse_secret(name, os.environ[name])
    wanted = shared_environment() | asked
    return wanted | {CODE_VERSION: code_version(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}


def shared_environment() -> dict[str, str]:
    """Return the variables of `PASSED` that are set, but for those with a password, which nodes have themselves."""
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {name: value for name, value in found.items() if not holds_secret(value)}


def _refuse_secret(place: str, value: str) -> None:
    if holds_secret(value):
        fix = "remove it from the address, and set it in the environment of the nodes"
        if place in PASSED:
            fix = f"unset it here, and set it in the environment of the nodes; --env {place} passes it all the same"
        raise UserError(f"{place}: holds a password or token, which Ray would show in its dashboard and logs; {fix}")


def _refuse_if_lost(option: str, place: str) -> None:
    if not place.startswith("/") and "://" not in place:
        raise UserError(
            f"{option} {place}: a job runs in a copy of this program that is removed at its end; choose a folder that "
            "every node sees, as an absolute path, or a URI such as s3://bucket/folder"
        )


def follow(job: str, address: str, write: Callable[[str], None]) -> int:
    """Follow a job's log until the job ends.

    Args:
        job: its submission id.
        address: the cluster's dashboard.
        write: receives pieces of the log, from its beginning.

    Returns:
        The exit code of the run; 143 where the job was stopped; 1 where it has no exit code of its own.

    Raises:
        UserError: the job is not known, the server does not answer, or it ends the log while the job runs.
    """
    check_id(job)
    client = connect(address)
    with answering(address, job):
        client.get_job_info(job)
        asyncio.run(_tail(client, job, write))
        details = _ended(client, job, job_server.ANSWER_SECONDS)
        if not details.status.is_terminal():
            again = f"run 'sande-bench logs {job} --address {address}' to follow it again"
            raise UserError(f"job {job}: its log ended at {address}, and it still runs; {again}")
        code, reason = outcome(details)
    if reason:
        write(f"{reason}\n")
    return code


async def _tail(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    """Pass on the log to its end; while it is silent, look whether there is still a server, and a job that runs."""
    log = client.tail_job_logs(job)

    async def piece() -> str:
        return await anext(log)

    coming = asyncio.create_task(piece())
    with suppress(StopAsyncIteration):
        while True:
            done, _ = await asyncio.wait({coming}, timeout=job_server.ANSWER_SECONDS)
            if done:
                write(coming.result())
                coming = asyncio.create_task(piece())
            elif client.get_job_info(job).status.is_terminal():
                coming.cancel()
                return


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


def _ended(client: JobSubmissionClient, job: str, seconds: float) -> JobDetails:
    """Return a job's state once it ended, or after `seconds`."""
    end = time.monotonic() + seconds
    while not (details := client.get_job_info(job)).status.is_terminal() and time.monotonic() < end:
        time.sleep(0.5)
    return details


def status(address: str, job: str | None = None) -> dict[str, list[str]]:
    """Return a table, by head, of one job or of all that were submitted, the earliest first."""
    if job is not None:
        check_id(job)
    client = connect(address)
    with answering(address, job or ""):
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

    Raises:
        UserError: the job is not known, the server does not answer, or the job does not end in time.
    """
    check_id(job)
    client = connect(address)
    with answering(address, job):
        running = not client.get_job_info(job).status.is_terminal()
        client.stop_job(job)
        patience = STOP_SECONDS + job_server.ANSWER_SECONDS
        details = _ended(client, job, patience)
        if not details.status.is_terminal():
            raise UserError(f"job {job}: still running {patience:g} s after it was asked to end; run stop again")
    return f"{job} {'ended' if running else 'had ended before'}: {details.status.value}"
