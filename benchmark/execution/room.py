"""Use a cluster that grows and shrinks during a run, and ask its autoscaler for nodes.

Ray's autoscalers take pending placement groups as demand. Here each is as large as one stage. They belong to the
driver, so Ray removes them when it ends, in whatever way. `ray.autoscaler.sdk.request_resources` would not do: a call
holds for the whole cluster until the next one, after its driver's death too, and Ray Train makes calls of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from benchmark.execution.cluster import at_once, capacity, worker_resources
from benchmark.grid.resources import Resources
from benchmark.store.leases import POLL
from sande.errors import UserError

PATIENCE = 900.0  # seconds for the first nodes; a cloud takes minutes to start a machine with GPUs
MOST = 100  # stages for which a run asks at a time; once nodes have come, it asks for others
NOTICE = 20.0  # seconds until Ray reports a node as dead (five checks, three seconds apart), and some more
RECENT = 60.0  # seconds for which the death of a node may explain that of a process


class Room:
    """The stages that a cluster holds at a time, and the demand for more."""

    def __init__(self, resources: Resources, per_worker: Mapping[str, float]) -> None:
        self._resources, self._per_worker = resources, dict(per_worker)
        self._demand: list[PlacementGroup] = []
        self._nodes = _nodes()
        self._gone: dict[str, float] = {}  # dead nodes, and when that was seen

    def stages(self) -> int:
        """Return how many stages the cluster holds now, if each takes a whole slot."""
        self._look()
        return capacity(self._resources, self._per_worker)

    def ask(self, more: int) -> None:
        """Have demand for so many stages on top of those that the cluster holds, and give back what was reserved."""
        states = placement_group_table() if self._demand else {}
        waiting: list[PlacementGroup] = []
        for group in self._demand:
            if len(waiting) < more and states.get(group.id.hex(), {}).get("state") == "PENDING":
                waiting.append(group)
            else:
                remove_placement_group(group)
        bundles = [self._per_worker] * self._resources.workers
        self._demand = waiting + [placement_group(bundles) for _ in range(more - len(waiting))]

    def close(self) -> None:
        """Drop the demand."""
        for group in self._demand:
            remove_placement_group(group)
        self._demand = []

    def lost_node(self) -> bool:
        """Return whether a node died lately, or in the next seconds: Ray often reports its processes before it."""
        until = time.monotonic() + NOTICE
        while True:
            self._look()
            now = time.monotonic()
            if any(now - seen < RECENT for seen in self._gone.values()):
                return True
            if now > until:
                return False
            time.sleep(0.5)

    def _look(self) -> None:
        nodes = _nodes()
        self._gone |= dict.fromkeys(self._nodes - nodes, time.monotonic())
        self._nodes = nodes


def await_first(resources: Resources, say: Callable[[str], None]) -> None:
    """Wait until the cluster holds a stage, and ask for the nodes meanwhile.

    Raises:
        UserError: it holds none after `PATIENCE` seconds.
    """
    begin, room = time.monotonic(), None
    try:
        while problem := _problem(resources):
            if time.monotonic() - begin > PATIENCE:
                raise problem
            if room is None:
                say(f"the cluster has no room for a stage yet; waiting for nodes, {PATIENCE / 60:g} minutes at most")
            else:
                room.close()  # the first node may have shown that a worker gets more
            room = Room(resources, _least(resources))
            room.ask(1)
            time.sleep(POLL)
    finally:
        if room:
            room.close()


def _problem(resources: Resources) -> UserError | None:
    """Return why the cluster holds no stage; None if it holds one."""
    try:
        at_once(resources, worker_resources(resources))
    except UserError as problem:
        return problem
    return None


def _least(resources: Resources) -> dict[str, float]:
    """Return what one worker needs at least; what it gets by default depends on nodes that are not there yet."""
    try:
        return worker_resources(resources)
    except UserError:
        return {"CPU": float(resources.cpus or 1)} | ({"GPU": resources.gpus} if resources.gpus else {})


def _nodes() -> set[str]:
    """Return the ids of the living nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
