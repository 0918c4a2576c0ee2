"""Work of another user, and of another container: what the tests of shared stores are made of.

The superuser may read and write everything, so a test that only takes permissions away would pass for the wrong reason
where tests run as root. Work is done by a child process with another user id.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONE, TWO, TEAM = 65_533, 65_534, 65_532  # two users, and a group that both are in
ONLY_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="becomes two other users, which only root may")
OWN_NUMBERS = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
CONTAINERS = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*OWN_NUMBERS, "true"], capture_output=True).returncode != 0,
    reason="makes a container with process numbers of its own, which this machine does not allow",
)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may use; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def as_user(user: int, work: Callable[[], object], umask: int = 0o022) -> str:
    """Do work as another user in a child process; its result as text, or the error of a class and its text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the child process failed"
        try:
            os.setgroups([TEAM])
            os.setgid(user)
            os.setuid(user)
            os.umask(umask)
            said = str(work())
        except BaseException as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said.encode(errors="replace"))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def in_a_container(code: str, *arguments: object) -> str:
    """Run Python with the host name of this machine and process numbers of its own; its output."""
    done = subprocess.run(
        [*OWN_NUMBERS, sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
