"""Decide which stage starts when: the queue that feeds Ray Tune, and a simulation of it. Independent of Ray."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmark.plan.failures import because_of
from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage

UNIT = 10_000  # Ray counts resources in ten-thousandths: 7 times a seventh, rounded up, would be more than one
TRIES = 3  # of a stage whose process is lost
NODES = 10  # that one stage may lose in a run; a spot machine that goes is not the stage's fault
_ROUNDING = 1e-9  # tolerance of sums of shares


@dataclass(frozen=True, slots=True)
class Assignment:
    """A stage that starts now, and its share of a slot."""

    stage: Stage
    share: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Result of a simulation.

    Attributes:
        wall: seconds from the start of the first stage to the end of the last one.
        busy: seconds of all stages, each times its share of a slot.
    """

    wall: float
    busy: float


def whole(stage: Stage) -> float:
    """Return the share of a slot where each stage has a whole one."""
    return 1.0


def side_by_side(number: int) -> Callable[[Stage], float]:
    """Return shares of a slot by which `number` defenses, parts or evaluations run at a time, and attacks alone."""
    share = UNIT // number / UNIT
    return lambda stage: 1.0 if stage.kind == "attack" else share


class Queue:
    """The missing stages of a plan, each offered as soon as its needs are done and a slot has room for it.

    Stages are offered in the plan's order; one that finds no room holds up those behind it, or it might never find
    room. A stage that fails also fails the stages that need it. One that ran out of memory is offered once more, alone,
    and one whose process or node was lost is offered up to `TRIES` times.

    Attributes:
        done: keys of all stages that are done.
        errors: one line for each stage that failed, or that needs one that failed.
        total: number of stages that the plan missed.
        finished: number of those that are done or have an error.
        slots: number of stages at a time, if each takes a whole slot.
    """

    def __init__(self, plan: Plan, slots: int, share: Callable[[Stage], float] = whole) -> None:
        """Queue the missing stages of a plan.

        Args:
            plan: plan of a grid.
            slots: number of stages at a time, if each takes a whole slot (a GPU, or the CPUs of one stage).
            share: returns a stage's share of a slot; called when the stage could start.
        """
        self.done = set(plan.done)
        self.errors: dict[str, str] = {}
        self._stages = plan.missing
        self.total, self.finished = len(self._stages), 0
        self._place = {stage.key: place for place, stage in enumerate(self._stages)}
        self._unmet = [set(stage.needs) - self.done for stage in self._stages]
        self._needed_by: dict[str, list[int]] = {}
        for place, unmet in enumerate(self._unmet):
            for need in unmet:
                self._needed_by.setdefault(need, []).append(place)
        self._ready = [place for place, unmet in enumerate(self._unmet) if not unmet]  # a heap, since it is sorted
        self._again: list[int] = []  # to offer alone
        self._alone: set[int] = set()  # offered alone
        self._deferred: list[int] = []
        self._tries: Counter[int] = Counter()
        self._nodes: Counter[int] = Counter()  # lost with the stage
        self._share = share
        self.slots = slots
        self._free = [1.0] * slots  # at least as many; a lost slot is in use until its stages have ended
        self._running: dict[str, tuple[int, float]] = {}  # slot and share
        self._crowded: set[str] = set()  # ran at the same time as others

    def next(self) -> Assignment | None:
        """Return the next stage, which counts as running from now on; None while there is none, or no room."""
        if self._again:
            if self._running or not self.slots:
                return None
            place = self._again.pop(0)
            self._alone.add(place)
            return self._start(place, 0, 1.0)
        if not self._ready or any(self._place[key] in self._alone for key in self._running):
            return None
        share, more = self._share(self._stages[self._ready[0]]), self._used() < self.slots
        fitting = [slot for slot, free in enumerate(self._free) if free + _ROUNDING >= share and (more or _used(free))]
        if not fitting:
            return None
        return self._start(heapq.heappop(self._ready), min(fitting, key=self._free.__getitem__), share)

    def resize(self, slots: int) -> None:
        """Have this many slots from now on, as the cluster grew or shrank; what runs goes on."""
        self.slots = slots
        self._free += [1.0] * (slots - len(self._free))

    def lacking(self, most: int) -> int:
        """Return how many more slots the stages that are ready would fill now, `most` at most."""
        if self._again or any(self._place[key] in self._alone for key in self._running):
            return 0  # a stage that runs alone
        room, needed = most + self.slots - self._used(), 0.0
        for place in self._ready:
            needed += self._share(self._stages[place])
            if needed >= room:
                break
        return max(0, min(most, math.ceil(needed - _ROUNDING) - self.slots + self._used()))

    def _used(self) -> int:
        return sum(map(_used, self._free))

    def _start(self, place: int, slot: int, share: float) -> Assignment:
        stage = self._stages[place]
        if self._running:
            self._crowded.update((stage.key, *self._running))
        self._tries[place] += 1
        self._free[slot] -= share
        self._running[stage.key] = (slot, share)
        return Assignment(stage, share)

    def defer(self, key: str) -> None:
        """Take an offer back until `resume`, since another run is doing that stage."""
        slot, share = self._running.pop(key)
        self._free[slot] += share
        self._crowded.discard(key)
        self._deferred.append(self._place[key])
        self._tries[self._place[key]] -= 1

    def resume(self) -> None:
        """Offer deferred stages again."""
        for place in self._deferred:
            heapq.heappush(self._ready, place)
        self._deferred.clear()

    def readers(self, key: str) -> list[Stage]:
        """Return the missing stages that need a missing stage."""
        return [self._stages[place] for place in self._needed_by.get(key, ())]

    def crowded(self, key: str) -> bool:
        """Return whether a running stage shares, or shared, its time with others."""
        return key in self._crowded

    def ended(
        self,
        key: str,
        error: str | None = None,
        short_of_memory: bool = False,
        lost: Literal["", "process", "node"] = "",
    ) -> Literal["", "again", "again, alone"]:
        """Record that a stage ended.

        Args:
            key: of the stage.
            error: one line where it failed.
            short_of_memory: whether too little memory was, or may have been, the reason.
            lost: what was lost, if that was the reason; a lost node does not count among the stage's tries.

        Returns:
            How it will be offered once more; empty where it will not.
        """
        slot, share = self._running.pop(key)
        self._free[slot] += share
        self._crowded.discard(key)
        place = self._place[key]
        if error is None:
            self.done.add(key)
            self.finished += 1
            for other in self._needed_by.get(key, ()):
                self._unmet[other].remove(key)
                if not self._unmet[other]:
                    heapq.heappush(self._ready, other)
        elif short_of_memory and place not in self._alone:
            self._again.append(place)
            return "again, alone"
        elif (lost == "process" and self._tries[place] < TRIES) or (lost == "node" and self._nodes[place] < NODES):
            if lost == "node":
                self._nodes[place] += 1
                self._tries[place] -= 1
            heapq.heappush(self._ready, place)
            return "again"
        else:
            self._fail(key, error)
        return ""

    def _fail(self, key: str, error: str) -> None:
        if key in self.errors:  # it needs several stages, and another of them failed before
            return
        self.errors[key] = error
        self.finished += 1
        reason = error if error.startswith("needs") else because_of(error)
        for other in self._needed_by.get(key, ()):
            self._fail(self._stages[other].key, reason)

    @property
    def over(self) -> bool:
        """Return whether every stage is done or has an error."""
        return self.finished == self.total


def _used(free: float) -> bool:
    """Return whether a slot with this share left is in use."""
    return free < 1.0 - _ROUNDING


def simulate(plan: Plan, slots: int, seconds: Callable[[Stage], float], share: Callable[[Stage], float]) -> Forecast:
    """Simulate the missing stages of a plan, each for the `seconds` that are returned for it when it starts."""
    queue, clock, busy = Queue(plan, slots, share), 0.0, 0.0
    ends: list[tuple[float, str]] = []
    while not queue.over:
        while offer := queue.next():
            takes = seconds(offer.stage)
            busy += takes * offer.share
            heapq.heappush(ends, (clock + takes, offer.stage.key))
        clock, key = heapq.heappop(ends)
        queue.ended(key)
    return Forecast(clock, busy)
