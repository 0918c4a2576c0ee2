"""A driver that is killed in the middle of a run, and the run after it. The fault suite does so many times."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.helpers import MARK, ROOT, TRAINING, Workplace, end, processes_with, wait_until

pytestmark = pytest.mark.slow
GONE = 120  # seconds; a Ray worker that was just starting gives up only after its time-out for reaching the cluster
TIME_OUT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}  # that one; Ray's own is a minute


@pytest.fixture(scope="module")
def grid(place: Workplace) -> Path:
    return place.grid("killed", sweep={"defense": ["none", {"name": "sft", "training": TRAINING}]})


@pytest.fixture(scope="module")
def killed(place: Workplace, grid: Path) -> Iterator[str]:
    """Kills a run as soon as its victim is in the store; gives the mark of its processes."""
    mark = uuid.uuid4().hex
    with (place.root / "log").open("wb") as log:
        driver = subprocess.Popen(
            place.command(grid),
            cwd=ROOT,
            env=os.environ | TIME_OUT | {MARK: mark},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert wait_until(lambda: bool(place.artifacts("attack")) or driver.poll() is not None, 200, pause=0.01)
        assert driver.poll() is None, (place.root / "log").read_text()
        assert len(processes_with(mark)) > 1
        driver.send_signal(signal.SIGKILL)
        assert driver.wait(20) == -signal.SIGKILL
        yield mark
    finally:
        end(processes_with(mark))


def test_no_process_outlives_a_killed_driver(killed: str) -> None:
    assert wait_until(lambda: not processes_with(killed), GONE), processes_with(killed)


def test_the_next_run_goes_on_where_the_killed_one_was(killed: str, place: Workplace, grid: Path) -> None:
    wait_until(lambda: not processes_with(killed), GONE)
    done_before = place.manifests()
    assert 1 <= len(done_before) < 1 + 1 + 2 * 2  # some, not all
    again = place.run(grid)
    assert again.returncode == 0, again.stdout + again.stderr
    after = place.manifests()
    assert {path: after[path] for path in done_before} == done_before
    assert len(after) == 1 + 1 + 2 * 2
    assert place.unfinished() == []
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
