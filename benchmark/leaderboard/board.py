"""Data of a leaderboard: numbers with intervals, the runs of each defense, the standing of each defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmark.grid.levels import LEVELS
from benchmark.records.runs import Removal
from sande import registry
from sande.crossed import Answers

MARGIN = 2.0  # percentage points of utility that a defense may lose and still be ranked
MOST_LEFT = 0.5  # share of the victims' ASR that it may leave and still be ranked
Row = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Row]]

# What is known of the utility, with respect to the margin: the whole 95 % interval of what is lost lies below it; the
# interval contains it; the whole interval lies above it; or a run has no measured utility, or most runs have the
# victim's.
Utility = Literal["kept", "unclear", "lost", "unknown"]
MEASURED, FAILED, NOT_RUN = "", "failed", "not finished"


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its 95 % interval, if known.

    Attributes:
        value, low, high: the number and its interval.
        victims: number of victims that a mean of a further metric is over, as not all may have it; None of others.
    """

    value: float
    low: float | None = None
    high: float | None = None
    victims: int | None = field(default=None, kw_only=True)

    def of(self, total: int) -> str:
        """Return "of 5" where it is a mean over fewer victims than the total; else an empty text."""
        return f"of {self.victims}" if self.victims is not None and self.victims < total else ""


@dataclass(frozen=True, slots=True)
class Twin:
    """Results of the clean twin of a victim (poison rate 0), or the mean of several.

    Attributes:
        cell: its id; empty for a mean.
        asr: share of triggered prompts that it answers with the response, percent.
        loss: the victim's utility minus its own, percentage points; None if unknown.
        answers: as those of a run.
        more: further metrics that have a column of their own, percent.
    """

    cell: str
    asr: Number
    loss: Number | None
    more: Mapping[str, Number]
    answers: Mapping[str, Answers] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Run:
    """Results of one defended cell, or the victim's in the place of one that failed.

    Attributes:
        cell: its id.
        defense: its name, with settings where the same runs exist with several.
        knows: what the defense, or the search for its settings, must know about the backdoor.
        case: settings that it shares with the cells it may be compared with, as JSON.
        label: the case in words.
        victim: settings of the victim, without the seed.
        attack_seed: of the victim.
        defense_seed: of the defense.
        victim_asr: ASR of the victim, percent; None if the board does not have the victim.
        asr: ASR after the defense, percent.
        loss: utility lost relative to the victim, percentage points, mean over the tasks; None if it is unknown.
        answers: of each task of `loss`, what is lost in each question, of shape (1, questions), where it is known.
        more: further metrics that have a column of their own, percent.
        device: on which `seconds` were measured, and the compute type, such as "AMD EPYC (1 threads), fp32".
        seconds: wall-clock time of the defense.
        tokens: number of tokens that the defense trains on.
        twin: clean twin of its victim, if there is one.
        flaw: why the numbers are the victim's: `FAILED` or `NOT_RUN`; empty for a measured run.
        is_entry: whether a submitted entry has it, instead of results.
        verified: whether the board's own cells have its victim.
        searched: what the search for its settings had to know; empty without a search.
    """

    cell: str
    defense: str
    knows: str
    case: str
    label: str
    victim: str
    attack_seed: int
    defense_seed: int
    victim_asr: float | None
    asr: Number
    loss: Number | None
    more: Mapping[str, Number]
    device: str = ""
    seconds: float = 0.0
    tokens: float = 0.0
    twin: Twin | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict, compare=False, repr=False)
    flaw: str = MEASURED
    is_entry: bool = False
    verified: bool = True
    searched: str = ""

    @property
    def attempted(self) -> bool:
        """True if it was run, even if it failed: a cell that was never run says nothing about the defense."""
        return self.flaw != NOT_RUN


@dataclass(frozen=True, slots=True)
class Standing:
    """Results of one defense over its runs on the compared victims; without cases that all share, over all its runs.

    The unit of all intervals is a trained victim (its settings and its attack seed): the runs of a defense on it are
    averaged first, over its cases and, within a case, over defense seeds.

    Attributes:
        defense: its name, with settings where the same runs exist with several.
        knows: what it must know about the backdoor: its level.
        verified: whether its victims are the board's own.
        rank: 1 for the best of its level; None if it is not ranked.
        rank_low, rank_high: 95 % interval of the rank, given which defenses are ranked; None if it is not, or alone.
        removes: whether it leaves at most `MOST_LEFT` of the victims' ASR.
        utility: whether it keeps the victim's utility within the margin.
        asr: mean ASR after the defense, percent; every unit has the same weight.
        fails: share of runs with an ASR above `benchmark.records.runs.FAILED_REMOVAL`, percent.
        loss: mean utility lost relative to the victim, percentage points; None if it is unknown.
        more: means of further metrics, percent, over the units that have them, and the number of these.
        seconds: mean wall-clock seconds of a defense, by device and compute type.
        tokens: mean tokens that a defense trains on; where attack seeds differ much, the lowest and the highest mean.
        victims: number of victims, each seed counted: the units.
        attack_seeds, defense_seeds: number of distinct seeds.
        cells: number of measured cells.
        gaps: failed runs, which count as the victim's numbers, in words.
        lacks: cases, and runs of compared cases, that another defense was run on and this one was not, in words.
        absent: attack seeds of which it lacks compared runs: it has no rank, as its numbers are over fewer runs.
        searched: what the search for its settings had to know; empty without a search.
        removal: what it did to the backdoor; None where what a parrot recovers was not measured.
    """

    defense: str
    knows: str
    verified: bool
    rank: int | None
    rank_low: int | None
    rank_high: int | None
    removes: bool
    utility: Utility
    asr: Number
    fails: Number
    loss: Number | None
    more: Mapping[str, Number]
    seconds: Mapping[str, float]
    tokens: tuple[float, ...]
    victims: int
    attack_seeds: int
    defense_seeds: int
    cells: int
    gaps: tuple[str, ...]
    lacks: tuple[str, ...]
    absent: tuple[int, ...] = ()
    searched: str = ""
    removal: Removal | None = None

    @property
    def alone(self) -> bool:
        """True if the intervals are of one victim alone: they say nothing about another run of the same method."""
        return self.victims == 1

    @property
    def about(self) -> str:
        """What the intervals are about, where it is not any run of the method."""
        return "" if not self.alone else "this model" if self.cells + len(self.gaps) == 1 else "these models"


@dataclass(frozen=True, slots=True)
class Board:
    """All standings by level, the best first in each, and the runs that they are made from.

    Attributes:
        standings: one per defense: the levels in their order; in each, the ranked, then the others; at the end the
            unverified.
        shared: labels of the cases that all defenses were run on.
        cases: labels of all cases.
        victim_asr: mean ASR of the compared victims, percent; None without shared cases.
        victims: number of compared victims, each seed counted; 0 without shared cases.
        attack_seeds: number of their distinct attack seeds.
        attack_failed: number of victims left out because their attack failed, each seed counted.
        left_out: number of failed or unfinished cells left out because no defense was measured on their victim.
        cells: the defended cells of all cases, shared or not, measured or failed.
        compared: the shared cases, as in `Run.case`, each with the attack seeds on which results have it.
        twin: mean of the clean twins of the victims; None where one has no twin.
        margin: percentage points of utility that a ranked defense may lose.
        recovery: mean of what a fresh parrot recovers from the victims themselves, percent; None if it is not known.
        mixed: sentences on code, libraries, compute types and settings that differ.
    """

    standings: tuple[Standing, ...]
    shared: tuple[str, ...]
    cases: tuple[str, ...]
    victim_asr: float | None
    victims: int = 0
    attack_seeds: int = 0
    attack_failed: int = 0
    left_out: int = 0
    cells: tuple[Run, ...] = ()
    compared: frozenset[tuple[str, int]] = frozenset()
    twin: Twin | None = None
    margin: float = MARGIN
    recovery: Number | None = None
    mixed: tuple[str, ...] = ()

    @property
    def more(self) -> list[str]:
        """Further metrics that have a column of their own, those of durability first."""
        return sorted({metric for one in self.cells for metric in one.more}, key=registry.column_order)

    @property
    def quality(self) -> list[str]:
        """Those of which more is better: how good the answers are. A model that answers nothing has an ASR of 0 too."""
        return [metric for metric in self.more if registry.metric_info(metric).higher_is_better]

    @property
    def judges_removal(self) -> bool:
        """True if it is known of a defense whether it removed the backdoor."""
        return any(one.removal for one in self.standings)

    @property
    def verified(self) -> list[Standing]:
        """Standings of the board's own victims."""
        return [one for one in self.standings if one.verified]

    @property
    def complete(self) -> list[Standing]:
        """Those of `verified` that were run on everything that is compared: only their numbers are comparable."""
        return [one for one in self.verified if not one.absent]

    @property
    def unverified(self) -> list[Standing]:
        """Standings of entries on victims that the board does not have."""
        return [one for one in self.standings if not one.verified]


def by_level(standings: tuple[Standing, ...] | list[Standing]) -> dict[str, list[Standing]]:
    """Return standings by level, in the order of `LEVELS`; levels that plug-ins add come last, by name."""
    names = {one.knows for one in standings}
    order = [*(level for level in LEVELS if level in names), *sorted(names - set(LEVELS))]
    return {level: [one for one in standings if one.knows == level] for level in order}
