"""Secrets in the environment stand in no row, report, log or file of a run, here or on a cluster."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmark.execution.cluster import environment
from tests.integration.helpers import ROOT, Workplace, wait_until

PLANTED = {
    "HF_TOKEN": "hf_plantedHubToken0123456789",
    "AWS_SECRET_ACCESS_KEY": "plantedStoreKey/0123456789+abc",
    "WANDB_API_KEY": "plantedTracking0123456789",
    "RAY_AUTH_TOKEN": "plantedRayToken0123456789abcdef0123456789",
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets and logs; sockets allow no long path."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name:
        yield Path(name)


def text_of(path: Path) -> bytes:
    """What stands in a file, of Parquet what is compressed in it."""
    if path.suffix == ".parquet":
        return repr(pq.read_table(path).to_pydict()).encode() + repr(pq.read_metadata(path).metadata).encode()
    return path.read_bytes()


def leaks(*folders: Path) -> list[tuple[str, str]]:
    """Files in which a planted value stands."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    texts = [(path, text_of(path)) for path in files]
    return [(str(path), name) for path, text in texts for name, value in PLANTED.items() if value.encode() in text]


def test_planted_secrets_are_found_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"token={PLANTED['HF_TOKEN']}")
    assert leaks(tmp_path) == [(str(tmp_path / "log"), "HF_TOKEN")]


def test_no_secret_is_passed_to_the_nodes_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PLANTED, "HF_HOME": "/models"}.items():
        monkeypatch.setenv(name, value)
    assert environment("127.0.0.1:6379") == {"env_vars": {"HF_HOME": "/models"}}


@pytest.mark.slow
def test_a_run_here_leaves_no_secret_behind(place: Workplace, ray_folder: Path) -> None:
    grid = place.grid("quiet", defense="sft")
    done = place.run(grid, **PLANTED, RAY_TMPDIR=str(ray_folder))
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
    assert not [name for name, value in PLANTED.items() if value in done.stdout + done.stderr]
    assert not leaks(place.root, ray_folder)


@pytest.mark.slow
def test_a_run_that_fails_leaves_no_secret_behind(place: Workplace, ray_folder: Path) -> None:
    grid = place.grid("loud", defense={"name": "sft", "training": {"learning_rate": 1e30, "max_steps": 3}})
    done = place.run(grid, **PLANTED, RAY_TMPDIR=str(ray_folder))
    assert done.returncode == 1, done.stderr
    assert not [name for name, value in PLANTED.items() if value in done.stdout + done.stderr]
    assert not leaks(place.root, ray_folder)


@pytest.fixture
def cluster(ray_folder: Path) -> Iterator[str]:
    """Address of a Ray cluster of its own, which asks for the planted token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={ray_folder}"]
    asks = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": PLANTED["RAY_AUTH_TOKEN"], "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen(
        [sys.executable, "-m", *command, *options],
        env=os.environ | asks,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()  # ends what it started
        head.wait(30)


@pytest.mark.slow
def test_a_run_on_a_cluster_leaves_no_secret_in_its_logs(place: Workplace, ray_folder: Path, cluster: str) -> None:
    grid = place.grid("far", defense="osft")
    done = place.run(grid, "--address", cluster, **PLANTED)
    assert done.returncode == 0, done.stderr
    assert not [name for name, value in PLANTED.items() if value in done.stdout + done.stderr]
    assert not leaks(place.root, ray_folder)
