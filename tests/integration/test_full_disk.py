"""A run whose store is on a disk that is too small: stages end with a sentence, and go on when there is room."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.integration.helpers import ROOT, TRAINING, Workplace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="mounts a small disk, which needs a user namespace"),
]

TWICE = """
set -e
store=$1; shift
mount -t tmpfs -o size=700k none "$store"
set +e; "$@"; echo "ended with $?"; set -e
"$PYTHON" -m benchmark store verify --store "$store"
mount -o remount,size=100m "$store"
"$@"
"""


def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(place: Workplace) -> None:
    grid = place.grid("full", sweep={"defense": ["none", {"name": "sft", "training": TRAINING}]})
    place.store.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", TWICE, "sh", str(place.store), *place.command(grid)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.split("ended with ")
    assert second.startswith("1\n")
    assert "no space is left" in first
    assert "Traceback" not in done.stdout + done.stderr
    assert " 0 damaged" in second
    assert {row["status"] for row in place.rows(grid)} == {"ok"}
