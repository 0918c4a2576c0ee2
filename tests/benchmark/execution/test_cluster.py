"""What a worker gets by default, on nodes of fakes, and the nodes that the example for AWS starts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmark.execution import cluster
from benchmark.execution.cluster import capacity, worker_resources
from benchmark.grid.resources import Resources
from sande.errors import UserError

EIGHT_GPUS = {"CPU": 96.0, "GPU": 8.0}
CPUS_ALONE, ONE_GPU = {"CPU": 64.0}, {"CPU": 8.0, "GPU": 1.0}

Have = Callable[..., None]


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Have:
    """Gives the cluster these nodes."""

    def give(*nodes: dict[str, float]) -> None:
        alive = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(cluster, "ray", SimpleNamespace(nodes=lambda: alive))

    return give


def test_twice_as_many_workers_fit_with_half_a_gpu_each(have: Have) -> None:
    have(EIGHT_GPUS)
    whole, half = worker_resources(Resources()), worker_resources(Resources(gpus=0.5))
    assert (whole, half) == ({"CPU": 12.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 0.5})
    assert (capacity(whole), capacity(half)) == (8, 16)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Resources(gpus=2), {"CPU": 12.0, "GPU": 2}),
        (Resources(gpus=0.01), {"CPU": 1.0, "GPU": 0.01}),
        (Resources(gpus=0.5, cpus=12), {"CPU": 12.0, "GPU": 0.5}),
        (Resources(gpus=0), {"CPU": 12.0}),
    ],
)
def test_other_amounts_on_eight_gpus(have: Have, asked: Resources, expected: dict[str, float]) -> None:
    have(EIGHT_GPUS)
    assert worker_resources(asked) == expected


def test_without_gpus_a_group_shares_a_node(have: Have) -> None:
    have(CPUS_ALONE)
    assert worker_resources(Resources()) == {"CPU": 64.0}
    assert worker_resources(Resources(workers=4)) == {"CPU": 16.0}


def test_the_defaults_are_those_of_one_node(have: Have) -> None:
    have(CPUS_ALONE, ONE_GPU)
    assert worker_resources(Resources()) == {"CPU": 8.0, "GPU": 1.0}
    assert capacity(worker_resources(Resources())) == 1
    assert worker_resources(Resources(gpus=0)) == {"CPU": 64.0}


def test_of_the_nodes_with_most_gpus_the_one_with_most_cpus_decides(have: Have) -> None:
    have(ONE_GPU, {"CPU": 16.0, "GPU": 1.0}, CPUS_ALONE)
    assert worker_resources(Resources()) == {"CPU": 16.0, "GPU": 1.0}


def test_what_the_user_sets_must_fit_one_node(have: Have) -> None:
    have({"CPU": 16.0, "GPU": 8.0}, {"CPU": 96.0, "GPU": 1.0})
    assert worker_resources(Resources(cpus=48)) == {"CPU": 48.0, "GPU": 1.0}
    have(CPUS_ALONE, ONE_GPU)
    with pytest.raises(UserError, match="a worker needs 32 CPUs and 1 GPUs, but the largest node has 8 and 1; set"):
        worker_resources(Resources(cpus=32))


def test_the_head_on_aws_holds_no_stage_while_a_machine_with_gpus_boots(have: Have) -> None:
    text = (Path(__file__).parents[3] / "docs/cluster/aws.yaml").read_text(encoding="utf-8")
    kinds = yaml.safe_load(text)["available_node_types"]
    head, gpus = (kinds[kind]["resources"] for kind in ("head", "gpus"))
    have(head)
    with pytest.raises(UserError, match="the largest node has 0 and 0"):
        worker_resources(Resources())
    have(head, gpus)
    assert worker_resources(Resources()) == {"CPU": 12.0, "GPU": 1.0}
