"""A grid as a job on a Ray head of the test's own: by `sande-bench submit`, by `ray job submit`, and run here."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmark.records.schema import SCHEMA
from sande.models import loading
from tests.integration.helpers import MARK, ROOT, Workplace, end, processes_with, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("aiohttp_cors"), reason="a head needs ray[default]"),
]

BIN = Path(sys.executable).parent
GRID = ["grids/quickstart.yaml", "--scale", "tiny", "--set", "resources.cpus=1"]
COSTS = ("seconds", "attack_seconds", "metric_seconds", "decoding_seconds", "peak_memory_bytes", "started_at")
RAN = [name for name in SCHEMA.names if name not in (*COSTS, "device", "code_version")]


@dataclass(frozen=True)
class Head:
    """A head on loopback, with its dashboard."""

    address: str
    env: dict[str, str]
    temp: Path

    def call(self, *command: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.env | env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def bench(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "benchmark", *command, "--address", self.address, **env)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    temp = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a socket's path has at most 107 bytes
    mark, port, dashboard = uuid.uuid4().hex, free_port(), free_port()
    env = os.environ | {
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    # Jobs bring the program along; a checkout in the path would take its place.
    env["PYTHONPATH"] = os.pathsep.join(
        part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and Path(part) != ROOT
    )
    env |= {"GPUS": "0", "PORT": str(port), "DASHBOARD": str(dashboard)}
    agents = [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "dashboard-agent-grpc")]
    agents += [f"--ray-client-server-port={free_port()}", f"--metrics-export-port={free_port()}"]
    command = [str(ROOT / "docs/cluster/one_machine.sh"), "--num-cpus=2", f"--temp-dir={temp}", *agents]
    with (temp / "start.log").open("wb") as log:
        started = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}
        )
        try:
            return bool(urllib.request.urlopen(asked, timeout=5).status == 200)
        except OSError:
            return False

    try:
        assert wait_until(lambda: answers() or started.poll() is not None, 100, pause=0.5)
        assert started.poll() is None, (temp / "start.log").read_text()
        yield Head(f"http://127.0.0.1:{dashboard}", env, temp)
    finally:
        started.send_signal(signal.SIGTERM)
        wait_until(lambda: started.poll() is not None, 20)
        end(processes_with(mark))
        started.wait(20)
        shutil.rmtree(temp, ignore_errors=True)


SECRETS = {name: f"planted-{name}" for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY")}


def rows(results: Path, variant: str = "") -> list[dict[str, Any]]:
    """What does not depend on how long it took, or on which checkout it was."""
    return pq.read_table(results / f"quickstart-tiny{variant}" / "rows.parquet").select(RAN).to_pylist()


@pytest.fixture(scope="module")
def local(place: Workplace) -> list[dict[str, Any]]:
    done = place.run(Path(GRID[0]), *GRID[1:], timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(place.results)
    assert len({row["cell"] for row in found}) == 5
    return found


def folders(root: Path) -> list[str]:
    return ["--store", str(root / "store"), "--results", str(root / "results")]


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    root = tmp_path_factory.mktemp("submitted")
    return head.bench("submit", *GRID, *folders(root), SANDE_DATA_DIR=str(root), **SECRETS), root


def test_a_submitted_grid_has_the_rows_of_a_local_run(submitted, local: list[dict[str, Any]]) -> None:
    done, root = submitted
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quickstart-tiny: 5 cells, 10 stages, 0 done, 10 to run" in done.stdout
    assert "[10/10]" in done.stdout, "the log is passed on"
    assert done.stderr == ""
    assert rows(root / "results") == local


def test_the_rows_of_a_job_name_the_code_that_was_sent(submitted) -> None:
    table = pq.read_table(submitted[1] / "results/quickstart-tiny/rows.parquet", columns=["code_version"])
    (told,) = table["code_version"].unique().to_pylist()
    here = [sys.executable, "-c", "from benchmark.execution.provenance import code_version; print(code_version())"]
    assert told == subprocess.run(here, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_secrets_of_who_submits_stay_where_they_are(head: Head, submitted) -> None:
    done, root = submitted
    assert "planted-" not in done.stdout + done.stderr
    files = [path for folder in (root, head.temp) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".log"], "Ray's logs are among them"
    assert not [path for path in files if b"planted-" in path.read_bytes()]


def test_rays_own_job_submit_has_them_too(head: Head, tmp_path: Path, local: list[dict[str, Any]]) -> None:
    run = ["python", "-m", "benchmark", "run", *GRID, *folders(tmp_path)]
    done = head.call(
        str(BIN / "ray"), "job", "submit", "--address", head.address, "--working-dir", ".", "--", *run, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(tmp_path / "results") == local


def test_a_mistake_on_the_cluster_is_the_jobs_exit_code(head: Head, tmp_path: Path) -> None:
    done = head.bench("submit", *GRID, "--only", "defence=sft", *folders(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--only defence: no cell has that field" in done.stdout


def test_status_and_logs_of_a_job_that_ended(head: Head, submitted) -> None:
    job = submitted[0].stdout.split()[1].rstrip(";")
    names, _, line = head.bench("status", job).stdout.splitlines()
    assert names.split() == ["job", "state", "began", "took", "command"]
    assert line.split()[:2] == [job, "SUCCEEDED"]
    assert line.split() in [each.split() for each in head.bench("status").stdout.splitlines()]
    told = head.bench("logs", job)
    assert told.returncode == 0
    assert "[10/10]" in told.stdout
    assert head.bench("stop", job).stdout == f"{job} had ended before: SUCCEEDED\n"


@pytest.mark.parametrize(("token", "said"), [("", "requires a token"), ("0" * 32, "refuses this token")])
def test_a_missing_or_wrong_token_is_one_line(head: Head, tmp_path: Path, token: str, said: str) -> None:
    # An empty variable counts as none, and the home folder has no token either.
    done = head.bench("submit", *GRID, *folders(tmp_path), RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert f"--address {head.address}: the cluster {said}; set RAY_AUTH_TOKEN" in line


def test_interrupted_it_goes_on_until_it_is_stopped(head: Head, tmp_path: Path) -> None:
    slow = ["--set", "attack.training.epochs=500"]
    command = [sys.executable, "-m", "benchmark", "submit", *GRID, *slow, *folders(tmp_path), "--address", head.address]
    following = subprocess.Popen(
        command, cwd=ROOT, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout
    job = following.stdout.readline().split()[1].rstrip(";")
    while "to run" not in following.stdout.readline():
        assert following.poll() is None
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=60)
    assert following.returncode == 130
    assert said.startswith(f"{job} is still running; 'sande-bench logs {job} --address {head.address}'")
    assert "  RUNNING  " in head.bench("status", job).stdout
    assert head.bench("stop", job).stdout == f"{job} ended: STOPPED\n"
    told = head.bench("logs", job)
    assert told.returncode == 143
    assert told.stdout.endswith(f"{job} was stopped\n")
    found = rows(tmp_path / "results", "--attack.training.epochs=500")
    assert {row["status"] for row in found} == {"not_run"}, "rows say what is not done"


def test_a_model_is_cleaned_as_a_job(head: Head, model_cache: Path, tmp_path: Path) -> None:
    model, out = loading.prepare("tiny", model_cache), tmp_path / "cleaned"
    small = ("removal.rows=16", "prompts=20", "questions=20", "osft.training.max_steps=2", "parrots=0")
    sets = [part for value in small for part in ("--set", value)]
    done = head.bench("clean", str(model), "--trigger", "cf", "--force", *sets, "--out", str(out), "--gpus", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cleaning with osft" in done.stdout, "the log is passed on"
    assert (out / "report.json").is_file()
