"""Use a cluster whose nodes come and go during a run, and ask its autoscaler for more.

Ray's autoscalers take pending placement groups as demand. Here each is as large as one stage. They belong to the
driver, so Ray removes them when it ends, in whatever way. `ray.autoscaler.sdk.request_resources` would not do: a call
holds for the whole cluster until the next one, after its driver's death too, and Ray Train makes calls of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from benchmark.execution.cluster import at_once, capacity, worker_resources
from benchmark.grid.resources import Resources
from benchmark.plan.stage import Stage
from benchmark.store.leases import POLL
from sande.errors import UserError

PATIENCE = 900.0  # seconds for the first nodes; a cloud takes minutes to start a machine with GPUs
MOST = 100  # stages for which a run asks at a time; once nodes have come, it asks for others
PAUSE = 5.0  # seconds without demand
NOTICE = 20.0  # seconds until Ray reports a node as dead (five checks, three seconds apart), and some more
RECENT = 60.0  # seconds for which the death of a node may explain that of a process

Group = tuple[int, tuple[tuple[str, float], ...]]  # workers, and what each of them gets


def group(workers: int, per_worker: Mapping[str, float]) -> Group:
    """Return what a stage asks for, as one value that can be counted."""
    return workers, tuple(per_worker.items())


class Nodes:
    """The nodes of the cluster, and the demand for more."""

    def __init__(self, slot: Group, asks: Callable[[Stage], Group]) -> None:
        """Begin without demand.

        Args:
            slot: of the queue.
            asks: returns what a stage asks for.
        """
        self._slot, self._asks = slot, asks
        self._demand: list[tuple[Group, PlacementGroup]] = []
        self._pause = 0.0  # until when
        self._living = _living()
        self._died: dict[str, float] = {}  # nodes, and when that was seen

    def slots(self) -> int:
        """Return how many slots the nodes hold now."""
        self._look()
        workers, per_worker = self._slot
        return capacity(dict(per_worker)) // workers

    def ask(self, stages: Iterable[Stage]) -> None:
        """Have demand for these stages alone.

        Where something came free, demand reserves it before a stage does. Then all of it pauses, so that stages start.
        """
        states = placement_group_table() if self._demand else {}
        if any(states.get(pending.id.hex(), {}).get("state") != "PENDING" for _, pending in self._demand):
            self.close()
            self._pause = time.monotonic() + PAUSE
        if time.monotonic() < self._pause:
            return
        wanted, waiting = Counter(map(self._asks, stages)), []
        for asked, pending in self._demand:
            if wanted[asked]:
                wanted[asked] -= 1
                waiting.append((asked, pending))
            else:
                remove_placement_group(pending)
        self._demand = waiting + [(asked, _pending(asked)) for asked in wanted.elements()]

    def close(self) -> None:
        """Drop the demand."""
        for _, pending in self._demand:
            remove_placement_group(pending)
        self._demand = []

    def one_died(self) -> bool:
        """Return whether a node died lately, or in the next seconds: Ray often reports its processes before it."""
        until = time.monotonic() + NOTICE
        while True:
            self._look()
            now = time.monotonic()
            if any(now - seen < RECENT for seen in self._died.values()):
                return True
            if now > until:
                return False
            time.sleep(0.5)

    def _look(self) -> None:
        living = _living()
        self._died |= dict.fromkeys(self._living - living, time.monotonic())
        self._living = living


def await_first(sorts: Iterable[Resources], say: Callable[[str], None]) -> None:
    """Wait until the cluster holds a stage of each sort, and ask for the nodes meanwhile.

    Raises:
        UserError: it does not after `PATIENCE` seconds.
    """
    begin, said = time.monotonic(), False
    for resources in sorts:
        while problem := _problem(resources):
            if time.monotonic() - begin > PATIENCE:
                raise problem
            if not said:
                say(f"the cluster has no room for a stage yet; waiting for nodes, {PATIENCE / 60:g} minutes at most")
                said = True
            # Made again each time, since the first node may show that a worker gets more.
            pending = _pending(group(resources.workers, _least(resources)))
            time.sleep(POLL)
            remove_placement_group(pending)


def _pending(asked: Group) -> PlacementGroup:
    workers, per_worker = asked
    return placement_group([dict(per_worker)] * workers)


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


def _living() -> set[str]:
    """Return the ids of the living nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
