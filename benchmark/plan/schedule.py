"""Decide which stage starts when: the queue that feeds Ray Tune, and a simulation of it. Independent of Ray."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from benchmark.plan.failures import because_of
from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage

UNIT = 10_000  # Ray counts resources in ten-thousandths: 7 times a seventh, rounded up, would be more than one
TRIES = 3  # of a stage whose process is lost
NODES = 10  # that one stage may lose in a run; a spot machine that goes is not the stage's fault
Ask = TypeVar("Ask", bound=Hashable)  # stages that ask for the same
_ROUNDING = 1e-9  # tolerance of sums of shares


@dataclass(frozen=True, slots=True)
class Assignment:
    """A stage that starts now.

    Attributes:
        stage: to start.
        share: part that it gets of what its resources ask for, 1 for all of it; other stages get the rest.
        room: slots that it takes.
        filled: part that these are of what it would take on a cluster with room for it.
    """

    stage: Stage
    share: float
    room: float = 1.0
    filled: float = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Result of a simulation.

    Attributes:
        wall: seconds from the start of the first stage to the end of the last one.
        busy: seconds of all stages, each times the slots that it takes.
        last: key of the stage that ended last; empty without stages.
        before: by key of a stage, that of the one whose end let it start; those of the first stages are left out.
    """

    wall: float
    busy: float
    last: str = ""
    before: Mapping[str, str] = field(default_factory=dict)


def whole(stage: Stage) -> float:
    """Return the share where each stage has all that it asks for, or the width where each asks for one slot."""
    return 1.0


def widths(needs: Mapping[Ask, Mapping[str, float]], at_once: Mapping[Ask, int]) -> tuple[int, Mapping[Ask, float]]:
    """Return the number of slots of a cluster, and how many of them each sort of stages takes.

    A slot is what the smallest sort asks for, so that where all stages ask for the same, each takes one.

    Args:
        needs: amounts by name of resource that a stage asks for, by sort.
        at_once: how many stages of a sort alone the cluster holds at a time.
    """
    if not needs:
        return 1, {}
    smallest = max(at_once, key=at_once.__getitem__)
    slot = needs[smallest]

    def width(sort: Ask) -> float:
        by_name = (
            amount / slot[name] if slot.get(name) else at_once[smallest] / at_once[sort]
            for name, amount in needs[sort].items()
            if amount
        )
        return max(1.0, *by_name) if sort != smallest else 1.0

    return at_once[smallest], {sort: width(sort) for sort in needs}


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

    def __init__(
        self,
        plan: Plan,
        slots: int,
        share: Callable[[Stage], float] = whole,
        width: Callable[[Stage], float] = whole,
        least: Callable[[Stage], float] | None = None,
    ) -> None:
        """Queue the missing stages of a plan.

        Args:
            plan: plan of a grid.
            slots: number of stages at a time, if each takes a whole slot (a GPU, or the CPUs of one stage).
            share: returns the part of its width that a stage takes; called when the stage could start.
            width: returns the slots that all of what a stage asks for takes, see `widths`; at most all slots count.
            least: returns the slots with which a stage may start, too; None: its width.
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
        self._share, self._width, self._least = share, width, least or width
        self.slots, self._at_first = slots, slots
        self._free = [1.0] * slots  # at least as many; a lost slot is in use until its stages have ended
        self._running: dict[str, dict[int, float]] = {}  # by slot, the part of it that a stage takes
        self._crowded: set[str] = set()  # ran at the same time as others

    def next(self) -> Assignment | None:
        """Return the next stage, which counts as running from now on; None while there is none, or no room."""
        if self._again:
            slots = self._fit(self._again[0], 1.0)
            if self._running or slots is None:
                return None
            place = self._again.pop(0)
            self._alone.add(place)
            return self._start(place, 1.0, slots)
        if not self._ready or any(self._place[key] in self._alone for key in self._running):
            return None
        share = self._share(self._stages[self._ready[0]])
        slots = self._fit(self._ready[0], share)
        return None if slots is None else self._start(heapq.heappop(self._ready), share, slots)

    def _fit(self, place: int, share: float) -> dict[int, float] | None:
        """Return the slots that a stage would take, and how much of each; None where there is no room for it.

        Less than a slot goes into the fullest one that has room; more is whole slots and the rest of another. A stage
        that may start with less takes what is free, if it lost a node before or the cluster is too small for it.
        """
        stage, unused = self._stages[place], self.slots - self._used()
        room = self._room(stage, share)
        empty = [slot for slot, free in enumerate(self._free) if not _used(free)]
        least = share * self._least(stage)
        if unused < room and least < room and (self._nodes[place] or self.slots < room):
            room = max(least, float(unused))
        number = int(room + _ROUNDING)
        rest = room - number if room - number > _ROUNDING else 0.0
        if unused < number:
            return None
        taken = dict.fromkeys(empty[:number], 1.0)
        if rest:
            more = unused > number
            fitting = [
                slot
                for slot, free in enumerate(self._free)
                if slot not in taken and free + _ROUNDING >= rest and (more or _used(free))
            ]
            if not fitting:
                return None
            taken[min(fitting, key=self._free.__getitem__)] = rest
        return taken

    def _room(self, stage: Stage, share: float) -> float:
        """Return the slots that a stage takes if it gets all that it asks for."""
        width = self._width(stage)
        # A cluster that held a stage at first holds it, even if by its width it seems too large.
        most = float(max(self.slots, self._at_first)) if self._least(stage) >= width else math.inf
        return share * min(width, most)

    def resize(self, slots: int) -> None:
        """Have this many slots from now on, as the cluster grew or shrank; what runs goes on."""
        self.slots = slots
        self._free += [1.0] * (slots - len(self._free))

    def lacking(self, most: int) -> list[Stage]:
        """Return stages that are ready and find no room, `most` at most; one for each slot that several can share."""
        if self._again or any(self._place[key] in self._alone for key in self._running):
            return []  # a stage runs alone, or will
        left, shared = float(self.slots - self._used()), 0.0
        found: list[Stage] = []
        for place in sorted(self._ready):
            if len(found) == most:
                break
            stage = self._stages[place]
            room = self._room(stage, self._share(stage))
            if room <= left:
                left -= room
            elif room >= 1.0:
                found.append(stage)
            else:
                if shared < _ROUNDING or shared + room > 1.0 + _ROUNDING:
                    found.append(stage)
                    shared = 0.0
                shared += room
        return found

    def _used(self) -> int:
        return sum(map(_used, self._free))

    def _start(self, place: int, share: float, slots: dict[int, float]) -> Assignment:
        stage = self._stages[place]
        if self._running:
            self._crowded.update((stage.key, *self._running))
        self._tries[place] += 1
        for slot, part in slots.items():
            self._free[slot] -= part
        self._running[stage.key] = slots
        room = sum(slots.values())
        return Assignment(stage, share, room, room / self._room(stage, share))

    def _leave(self, key: str) -> None:
        for slot, part in self._running.pop(key).items():
            self._free[slot] += part
        self._crowded.discard(key)

    def defer(self, key: str) -> None:
        """Take an offer back until `resume`, since another run is doing that stage."""
        self._leave(key)
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
        self._leave(key)
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


def simulate(
    plan: Plan,
    slots: int,
    seconds: Callable[[Stage], float],
    share: Callable[[Stage], float],
    width: Callable[[Stage], float] = whole,
) -> Forecast:
    """Simulate the missing stages of a plan, each for the `seconds` that are returned for it when it starts."""
    queue, clock, busy, key = Queue(plan, slots, share, width), 0.0, 0.0, ""
    ends: list[tuple[float, str]] = []
    before: dict[str, str] = {}
    while not queue.over:
        while offer := queue.next():
            takes = seconds(offer.stage)
            busy += takes * offer.room
            heapq.heappush(ends, (clock + takes, offer.stage.key))
            if key:
                before[offer.stage.key] = key
        clock, key = heapq.heappop(ends)
        queue.ended(key)
    return Forecast(clock, busy, key, before)
