"""Ray's own processes are killed under a run, and any process of a run at any moment.

A raylet ends with each of its agents, and a driver without a raylet once waited for ever.
"""

import random
import sys
import time

import pytest

from tests.faults.conftest import NewCase
from tests.faults.harness import TRAIN, Case
from tests.faults.processes import OF_A_RUN
from tests.integration.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

# Seconds for a run that lost a process: to notice it, to start Ray again, and to do all stages, on a busy machine.
ENOUGH = 240
UNTIL = 0.7  # of the seconds of the undisturbed run, which was the first and slower: the last moment


@pytest.mark.parametrize("what", OF_A_RUN)
def test_a_process_of_ray_is_killed(case: NewCase, undisturbed: Case, what: str) -> None:
    with case(f"SIGKILL of {what}, during a training") as here:
        here.reach(here.faults.arm(TRAIN, stage="defend sft", call=2))
        (pid,) = [pid for pid, found in here.of_run().items() if found == what]
        here.kill(pid)
        here.faults.release()
        here.drivers[-1].wait(ENOUGH)
        assert "Traceback" not in last_words(here), here.said
        here.recover(undisturbed)


def last_words(here: Case) -> str:
    """What the driver itself said at its end."""
    return "\n".join(here.said.splitlines()[-3:])


def test_a_random_process_is_killed_at_a_random_moment(case: NewCase, undisturbed: Case, kill: int) -> None:
    chance = random.Random(kill)
    with case("SIGKILL of a random process of a run, at a random moment") as here:
        driver, seconds = here.start(), chance.uniform(0, UNTIL) * undisturbed.line.seconds
        wait_until(lambda: driver.poll() is not None, seconds)
        found = sorted(here.of_run().items())
        if found:  # else this run was faster, and nothing was killed
            pid, what = chance.choice(found)
            here.kill(pid)
            here.line.injected = 1
            begin = time.monotonic()
            driver.wait(ENOUGH)
            took = time.monotonic() - begin
            code = driver.returncode
            sys.stdout.write(f"kill {kill}: {what} after {seconds:.1f} s; ended {took:.1f} s later with {code}\n")
        here.recover(undisturbed)
