"""The hook holds a process where it was told to, once, and changes nothing else."""

import subprocess
import sys

from benchmark.io.files import clear_parts
from tests.faults.harness import WRITE, Faults
from tests.integration.helpers import wait_until

WRITES = """
import sys
from pathlib import Path
from benchmark.io.files import write_atomically
for name in ("one", "two"):
    write_atomically(Path(sys.argv[1]) / name, "0123456789")
"""


def test_a_process_is_held_in_the_middle_of_a_file(tmp_path) -> None:
    faults = Faults(tmp_path / "faults")
    place = tmp_path / "place"
    place.mkdir()
    fault = faults.arm(WRITE, "half", path="two")
    writer = subprocess.Popen([sys.executable, "-c", WRITES, place], env=faults.environment)
    assert wait_until(lambda: bool(list(place.glob(".two.*.part"))), 30)
    (part,) = place.glob(".two.*.part")
    assert wait_until(lambda: part.read_text() == "01234", 30)
    assert faults.fired(fault) == writer.pid
    assert faults.processes() == {writer.pid: ""}
    assert (place / "one").read_text() == "0123456789"

    writer.kill()
    writer.wait()
    assert faults.processes() == {}
    clear_parts(place)
    assert [path.name for path in place.iterdir()] == ["one"]
    subprocess.run([sys.executable, "-c", WRITES, place], env=faults.environment, check=True)  # it happens once
    assert (place / "two").read_text() == "0123456789"


def test_a_held_process_goes_on(tmp_path) -> None:
    faults = Faults(tmp_path / "faults")
    fault = faults.arm(WRITE, "half", path="one")
    writer = subprocess.Popen([sys.executable, "-c", WRITES, tmp_path], env=faults.environment)
    assert wait_until(lambda: faults.fired(fault) is not None, 30)
    faults.release()
    assert writer.wait(30) == 0
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["0123456789"] * 2
