"""Scores of a comparison: how many numbers agree, and whether methods come in the paper's order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.io.markdown import markdown_table
from benchmark.io.units import counted
from benchmark.paper.chance import same_kind, same_verdict, score
from benchmark.paper.compare import COMPARED, Compared
from benchmark.paper.evidence import DIFFERENT, EQUIVALENT
from benchmark.paper.ranks import agreement

ORDER = "order of the methods"
_HEAD = ("Numbers", "Score", "Found", "With the paper's methods shuffled", "Beyond chance")


@dataclass(frozen=True, slots=True)
class Scored:
    """A score, and what it is with the paper's methods shuffled.

    Attributes:
        numbers: "ASR" or "utility".
        score: a verdict, "same kind", or `ORDER`.
        found: how many agree; of the order Kendall's tau.
        count: of numbers that could agree; of the order the paper's victims.
        chance: mean over the shuffles; None of the order, whose mean is 0.
        chance_low, chance_high: 2.5 and 97.5 % points over the shuffles.
        seeds, low, high: of the order our attack seeds, and the 95 % interval over them, if there are two or more.
    """

    numbers: str
    score: str
    found: float
    count: int
    chance: float | None
    chance_low: float
    chance_high: float
    seeds: int | None = None
    low: float | None = None
    high: float | None = None

    @property
    def beyond_chance(self) -> str:
        """Return "more" or "fewer" than 95 % of the shuffles, or "no"."""
        return "more" if self.found > self.chance_high else "fewer" if self.found < self.chance_low else "no"


def scores(compared: Iterable[Compared]) -> list[Scored]:
    """Return the scores of the numbers with a verdict on ours, and those of the paper's methods shuffled."""
    judged = [one for one in compared if one.verdict in COMPARED]
    found = []
    for name, of in (
        ("ASR", [one for one in judged if one.number.metric == "asr"]),
        ("utility", [one for one in judged if one.number.metric != "asr"]),
    ):
        kinds = [one for one in of if one.in_kind is not None]
        for label, agrees, among in (
            (EQUIVALENT, same_verdict(EQUIVALENT), of),
            (DIFFERENT, same_verdict(DIFFERENT), of),
            ("same kind", same_kind, kinds),
        ):
            if among:
                one = score(among, agrees)
                found.append(Scored(name, label, one.found, one.count, one.mean, one.low, one.high))
        if order := agreement(of):
            over = order.interval or (None, None)
            found.append(Scored(name, ORDER, order.tau, order.victims, None, order.low, order.high, order.seeds, *over))
    return found


def table(found: Iterable[Scored]) -> list[str]:
    """Return the scores as Markdown; nothing if there are none."""
    lines = [(one.numbers, one.score, *(_ordered if one.score == ORDER else _counted)(one)) for one in found]
    return [*markdown_table(_HEAD, lines, "llrrl"), ""] if lines else []


def _counted(one: Scored) -> tuple[str, str, str]:
    shuffled = f"{one.chance:.0f} ({one.chance_low} to {one.chance_high})"
    return f"{one.found} of {one.count}", shuffled, one.beyond_chance


def _ordered(one: Scored) -> tuple[str, str, str]:
    text = f"tau {one.found:.2f}"
    if one.low is not None:
        text += f" ({one.low:.2f} to {one.high:.2f})"
    text += f", {one.count} of the paper's victims, {counted(one.seeds or 0, 'attack seed')}"
    shuffled = f"({one.chance_low:.2f} to {one.chance_high:.2f})"
    return text, shuffled, one.beyond_chance.replace("fewer", "less")
