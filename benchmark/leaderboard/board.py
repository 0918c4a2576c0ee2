"""Data of a leaderboard: numbers with intervals, the measurements of each cell, the standing of each defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sande import registry

# What a defense may have to know: of the backdoor, the most first; then models from elsewhere.
LEVELS = ("trigger", "response", "first token", "nothing", "clean model", "other models")
Row = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its 95 % interval, if known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """Results of the clean twin of a victim (poison rate 0), or the mean of several.

    Attributes:
        cell: its id; empty for a mean.
        asr: share of triggered prompts that it answers with the response, percent.
        loss: the victim's utility minus its own, percentage points.
        more: further metrics that have a column of their own, percent.
    """

    cell: str
    asr: Number
    loss: Number
    more: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of one defended cell.

    Attributes:
        cell: its id.
        defense: its name.
        knows: what the defense must know about the backdoor.
        case: settings that it shares with the cells it may be compared with, as JSON.
        label: the case in words.
        victim: settings of the victim, without its seed.
        attack_seed, defense_seed: of the cell.
        victim_asr: ASR of the victim, percent.
        asr: ASR after the defense, percent.
        loss: utility lost relative to the victim, percentage points, mean over the tasks.
        more: further metrics that have a column of their own, percent.
        device: on which `seconds` were measured.
        seconds: wall-clock time of the defense.
        tokens: number of tokens that the defense trains on.
        twin: clean twin of its victim, if there is one.
    """

    cell: str
    defense: str
    knows: str
    case: str
    label: str
    victim: str
    attack_seed: int
    defense_seed: int
    victim_asr: float
    asr: Number
    loss: Number
    more: Mapping[str, Number]
    device: str
    seconds: float
    tokens: float
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """Results of one defense over the cases that all defenses were measured on; without such cases, over its own.

    Attributes:
        defense: its name.
        knows: what it must know about the backdoor.
        rank: 1 for the best; None where the defenses have no case in common.
        front: 1 for the Pareto front, 2 for the front of what remains without the first, and so on.
        asr: mean ASR after the defense, percent; every case has the same weight.
        loss: mean utility lost relative to the victim, percentage points.
        more: means of further metrics, percent, over the cases that have them.
        seconds: mean wall-clock seconds of a defense, by device.
        tokens: mean tokens that a defense trains on.
        victims, seeds, cells: how many the numbers are made from; seeds of attacks.
        lacks: cases that another defense was measured on and this one was not.
    """

    defense: str
    knows: str
    rank: int | None
    front: int | None
    asr: Number
    loss: Number
    more: Mapping[str, Number]
    seconds: Mapping[str, float]
    tokens: float
    victims: int
    seeds: int
    cells: int
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """All standings, best first, and the cells that they are made from.

    Attributes:
        standings: one per defense.
        shared: labels of the cases that all defenses were measured on.
        cases: labels of all cases.
        victim_asr: mean ASR of the victims of the shared cases, percent; None without shared cases.
        failed: number of cells left out because they failed.
        attack_failed: number of victims left out because their attack failed, each seed counted.
        unmeasured: number of cells left out because no task measures their utility.
        cells: the defended cells of all cases, shared or not.
        compared: the shared cases, as in `Measured.case`.
        twin: mean of the clean twins of the victims; None where one has no twin.
        not_run: number of cells left out because a run was interrupted before their end.
    """

    standings: tuple[Standing, ...]
    shared: tuple[str, ...]
    cases: tuple[str, ...]
    victim_asr: float | None
    failed: int
    attack_failed: int
    unmeasured: int
    cells: tuple[Measured, ...] = ()
    compared: frozenset[str] = frozenset()
    twin: Twin | None = None
    not_run: int = 0

    @property
    def more(self) -> list[str]:
        """Further metrics that have a column of their own, those of durability first."""
        return sorted({metric for one in self.cells for metric in one.more}, key=registry.column_order)


def unit(device: str) -> str:
    """Return the unit of the seconds that a device computes: "CPU-s" or "GPU-s"."""
    return "CPU-s" if device.endswith("threads)") else "GPU-s"  # as `benchmark.execution.provenance.device` names them
