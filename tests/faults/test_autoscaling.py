"""Runs on a cluster that grows and shrinks: they use nodes that come, and survive those that go."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.autoscaling import Autoscaled
from tests.faults.conftest import NewCase
from tests.faults.harness import SOON, TRAIN, Case, Faults, Line
from tests.integration.helpers import end, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]
MOST = 4  # nodes
GRID = {"sweep": {"seed": [1, 2, 3, 4]}, "defense": "none"}


@pytest.fixture(scope="module")
def autoscaled(faults: Faults, undisturbed: Case) -> Iterator[Autoscaled]:
    """After the first run, as for `machines`."""
    made = Autoscaled(faults, MOST)
    yield made
    made.close()


@pytest.fixture(scope="module")
def quiet(faults: Faults, undisturbed: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The run of the same grid on one machine."""
    case = Case(tmp_path_factory.mktemp("quiet") / "0", faults, Line("none"), (), GRID)
    assert case.ended(case.start()) == 0, case.said
    return case


def nodes_are(autoscaled: Autoscaled, *numbers: int) -> bool:
    return wait_until(lambda: len(autoscaled.raylets()) in numbers, SOON, pause=1)


def test_a_cluster_grows_and_shrinks(case: NewCase, quiet: Case, autoscaled: Autoscaled) -> None:
    assert nodes_are(autoscaled, 1)
    with case("a cluster that grows from 1 node to 4 and shrinks again", *autoscaled.options, **GRID) as here:
        holding = [here.faults.arm(TRAIN, stage="attack") for _ in range(MOST)]
        for each in holding:  # so four attacks run at a time
            here.reach(each)
        here.line.injected = 1
        assert len(autoscaled.raylets()) == MOST
        assert "the cluster has room for 4 stages at a time" in here.said
        for each in holding[1:]:
            here.faults.release(each)
        assert wait_until(lambda: here.said.count("evaluate tiny none") == MOST - 1, SOON), here.said
        assert nodes_are(autoscaled, 1, 2), "where nothing runs, a node goes"
        assert here.drivers[-1].poll() is None
        here.faults.release(holding[0])
        assert here.ended() == 0, here.said
        assert nodes_are(autoscaled, 1), "nothing asks for nodes any more"
        here.recover(quiet)


def test_a_node_of_a_growing_cluster_is_lost(case: NewCase, quiet: Case, autoscaled: Autoscaled) -> None:
    with case("SIGKILL of a spot node, of the four of a cluster with an autoscaler", *autoscaled.options, **GRID) as here:
        holding = [here.faults.arm(TRAIN, stage="attack", call=2) for _ in range(MOST)]
        pids = [here.reach(each) for each in holding]
        autoscaled.kill_node_of(pids[-1])
        here.line.injected = 1
        here.faults.release()
        assert here.ended() == 0, here.said
        assert "lost node; again" in here.said, "elsewhere, and not alone"
        here.recover(quiet)


@pytest.mark.parametrize("signal", ["terminate", "kill"])
def test_the_demand_of_a_run_that_ends_is_dropped(case: NewCase, quiet: Case, autoscaled: Autoscaled, signal) -> None:
    with case(f"a driver on a cluster with an autoscaler is told to {signal}", *autoscaled.options, **GRID) as here:
        here.reach(here.faults.arm(TRAIN, stage="attack"))
        assert nodes_are(autoscaled, 2, 3, 4)
        getattr(here.drivers[-1], signal)()
        here.ended()
        here.vanish()
        assert nodes_are(autoscaled, 1)
        here.recover(quiet)
