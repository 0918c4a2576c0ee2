"""Demand for nodes, on a cluster of fakes; `tests/faults/test_autoscaling.py` has a real one."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from benchmark.execution import autoscaling, cluster
from benchmark.execution.autoscaling import Nodes, await_first, group
from benchmark.execution.cluster import at_once, capacity
from benchmark.grid.resources import Resources
from benchmark.plan.stage import Stage
from sande.errors import UserError
from tests.benchmark.plan.helpers import stage

BIG = stage("big")


@dataclass(eq=False)
class Pending:
    """A placement group; `id` has what Ray's has."""

    bundles: list[dict[str, float]]
    state: str = "PENDING"

    @property
    def id(self) -> Any:
        return self

    def hex(self) -> str:
        return str(id(self))


class Ray:
    """What Ray knows of nodes and placement groups."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.nodes_ = [{"NodeID": str(number), "Alive": True, "Resources": has} for number, has in enumerate(nodes)]
        self.pending: list[Pending] = []

    def nodes(self) -> list[dict[str, Any]]:
        return self.nodes_

    def placement_group(self, bundles: list[dict[str, float]]) -> Pending:
        self.pending.append(Pending(bundles))
        return self.pending[-1]

    def table(self) -> dict[str, dict[str, str]]:
        return {each.hex(): {"state": each.state} for each in self.pending}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray({"CPU": 2.0}, {"CPU": 3.0, "GPU": 1.0})
    for module in (autoscaling, cluster):
        monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(autoscaling, "placement_group", made.placement_group)
    monkeypatch.setattr(autoscaling, "placement_group_table", made.table)
    monkeypatch.setattr(autoscaling, "remove_placement_group", made.pending.remove)
    clock = itertools.count()  # seconds
    monkeypatch.setattr(autoscaling.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(autoscaling.time, "sleep", lambda seconds: None)
    return made


def asks(what: Stage) -> autoscaling.Group:
    return group(2 if what is BIG else 1, {"CPU": 2.0})


def test_a_worker_is_on_one_node(ray: Ray) -> None:
    assert capacity({"CPU": 1.0}) == 5
    assert capacity({"CPU": 2.0}) == 2, "not half of each"
    assert capacity({"CPU": 1.0, "GPU": 0.1}) == 3
    assert capacity({"GPU": 0.1}) == 10


def test_a_cluster_holds_a_group_that_may_shrink_where_it_holds_the_least(ray: Ray) -> None:
    assert at_once(Resources(workers=2), {"CPU": 1.0}) == 2
    assert at_once(Resources(workers=8, min_workers=5), {"CPU": 1.0}) == 1
    with pytest.raises(UserError, match=r"6 workers of .* are more than the cluster has"):
        at_once(Resources(workers=8, min_workers=6), {"CPU": 1.0})


def test_each_stage_without_room_is_demand_and_no_other_is(ray: Ray) -> None:
    nodes = Nodes(group(1, {"CPU": 2.0}), asks)
    nodes.ask([BIG, stage("a"), stage("b")])
    assert [each.bundles for each in ray.pending] == [[{"CPU": 2.0}] * 2, [{"CPU": 2.0}], [{"CPU": 2.0}]]
    first = list(ray.pending)
    nodes.ask([BIG, stage("c")])
    assert ray.pending == first[:2], "what is asked for already stays"
    nodes.close()
    assert ray.pending == []


def test_what_a_new_node_reserved_for_a_demand_is_given_back(ray: Ray) -> None:
    nodes = Nodes(group(1, {"CPU": 2.0}), asks)
    nodes.ask([stage("a"), stage("b")])
    reserved, waiting = ray.pending
    reserved.state = "CREATED"
    nodes.ask([stage("b")])
    assert ray.pending == [], "until stages had time to take it"
    for _ in range(int(autoscaling.PAUSE)):
        nodes.ask([stage("b")])
    assert [each.bundles for each in ray.pending] == [waiting.bundles]


def test_slots_follow_the_living_nodes(ray: Ray) -> None:
    nodes = Nodes(group(1, {"CPU": 2.0}), asks)
    assert nodes.slots() == 2
    ray.nodes_[1]["Alive"] = False
    assert nodes.slots() == 1


@pytest.mark.parametrize("seconds", [0, 10])
def test_a_node_that_dies_soon_after_its_process_is_noticed(ray: Ray, seconds: int, monkeypatch: Any) -> None:
    nodes = Nodes(group(1, {"CPU": 2.0}), asks)
    assert not nodes.one_died()
    slept = itertools.count()

    def sleep(_: float) -> None:
        ray.nodes_[1]["Alive"] = next(slept) < seconds // 2

    sleep(0.0)
    monkeypatch.setattr(autoscaling.time, "sleep", sleep)
    assert nodes.one_died()
    for _ in range(int(autoscaling.RECENT)):
        autoscaling.time.monotonic()
    assert not nodes.one_died(), "a minute later"


def test_an_empty_cluster_is_asked_for_a_stage_and_waited_for(ray: Ray, monkeypatch: Any) -> None:
    ray.nodes_, said = [ray.nodes_[0] | {"Resources": {"CPU": 0.0}}], list[str]()
    seen = []

    def sleep(_: float) -> None:
        seen.extend(each.bundles for each in ray.pending)
        if len(seen) == 3:
            ray.nodes_.append({"NodeID": "9", "Alive": True, "Resources": {"CPU": 4.0}})

    monkeypatch.setattr(autoscaling.time, "sleep", sleep)
    await_first([Resources(cpus=4)], said.append)
    assert seen == [[{"CPU": 4.0}]] * 3
    assert said == ["the cluster has no room for a stage yet; waiting for nodes, 15 minutes at most"]
    assert ray.pending == []


def test_a_cluster_that_stays_too_small_is_refused(ray: Ray) -> None:
    with pytest.raises(UserError, match="the largest node has 3 and 1"):
        await_first([Resources(cpus=4)], lambda line: None)
    assert ray.pending == []
