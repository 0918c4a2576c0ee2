"""Clusters that grow and shrink: runs use nodes that come, and survive those that go, with fewer workers, too."""

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from benchmark.plan import maintenance
from benchmark.store.local import LocalStore
from tests.faults.autoscaling import Autoscaled
from tests.faults.conftest import NewCase
from tests.faults.harness import SOON, TRAIN, Case, Faults, Line, Machines
from tests.integration.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]
MOST = 4  # nodes
WEIGHTS = "model.safetensors"
CHANGES = "2 from step 0 of 1-attack; 1 from step 2 of 1-attack"
GRID = {"sweep": {"seed": [1, 2, 3, 4]}, "defense": "none"}


@pytest.fixture(scope="module")
def quiet(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The run of the same grid on one machine."""
    case = Case(tmp_path_factory.mktemp("quiet") / "0", faults, Line("none"), (), GRID)
    assert case.ended(case.start()) == 0, case.said
    return case


@pytest.fixture(scope="module")
def autoscaled(faults: Faults, quiet: Case) -> Iterator[Autoscaled]:
    """After the first run, as for `machines`."""
    made = Autoscaled(faults, MOST)
    yield made
    made.close()


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
        assert wait_until(lambda: here.said.count(": done in") == 2 * (MOST - 1), SOON), here.said
        assert nodes_are(autoscaled, 1, 2), "where nothing runs, a node goes"
        assert here.drivers[-1].poll() is None
        here.faults.release(holding[0])
        assert here.ended() == 0, here.said
        assert nodes_are(autoscaled, 1), "nothing asks for nodes any more"
        here.recover(quiet)


def test_a_node_of_a_growing_cluster_is_lost(case: NewCase, quiet: Case, autoscaled: Autoscaled) -> None:
    with case("SIGKILL of one of four nodes of a growing cluster", *autoscaled.options, **GRID) as here:
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


def test_a_group_goes_on_with_the_worker_that_is_left(case: NewCase, quiet: Case, faults: Faults) -> None:
    resources = {"cpus": 1, "workers": 2, "min_workers": 1, "checkpoint_minutes": 0}
    changes = GRID | {"resources": resources, "sweep": {"seed": [1]}}
    machines = Machines(faults, nodes=2)
    try:
        with case("a node of two that train together is lost for good", *machines.options, **changes) as here:
            fault = here.faults.arm(TRAIN, stage="attack", call=3)
            machines.kill(machines.node_of(here.reach(fault)))
            assert here.ended() == 0, here.said
            assert "lost node; again" in here.said
            rows = here.rows(here.path)
            assert {row["attack_worker_changes"] for row in rows} == {CHANGES}
            assert {(row["status"], row["attack_workers"], row["workers"]) for row in rows} == {("ok", 1, 1)}
            assert {row["worker_changes"] for row in rows} == {None}
            here.vanish()
            assert here.ended(here.start()) == 0, here.said
            assert here.left() == set(), "what the lost worker had begun, the next run removes"
            assert list(maintenance.verify(LocalStore(here.store))) == []
            (victim,) = here.artifacts("attack")
            made, whole = (load_file(each.store / "attack" / victim.name / WEIGHTS) for each in (here, quiet))
            for name, weight in whole.items():  # of one worker; up to rounding it is the same training
                torch.testing.assert_close(made[name], weight, rtol=0, atol=1e-3)
            here.line.recovered = "by the run itself"
            here.line.repeated = 1
    finally:
        machines.close()
