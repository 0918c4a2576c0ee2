"""Scores of a comparison as Markdown: how many numbers agree, and whether methods come in the paper's order."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.io.markdown import markdown_table
from benchmark.paper.chance import Score, same_kind, same_verdict, score
from benchmark.paper.compare import Compared
from benchmark.paper.evidence import DIFFERENT, EQUIVALENT
from benchmark.paper.ranks import Agreement, agreement

_HEAD = ("Numbers", "Score", "Found", "With the paper's numbers shuffled", "Beyond chance")


def table(judged: Sequence[Compared]) -> list[str]:
    """Return the scores, and those that the paper's numbers give when they are shuffled.

    Args:
        judged: numbers with a verdict on ours.
    """
    if not judged:
        return []
    rates = [one for one in judged if one.number.metric == "asr"]
    utilities = [one for one in judged if one.number.metric != "asr"]
    lines = []
    for name, of in (("ASR", rates), ("utility", utilities)):
        kinds = [one for one in of if one.in_kind is not None]
        for label, agrees, among in (
            (EQUIVALENT, same_verdict(EQUIVALENT), of),
            (DIFFERENT, same_verdict(DIFFERENT), of),
            ("same kind", same_kind, kinds),
        ):
            if among:
                lines.append((name, label, *_counted(score(among, agrees))))
        if found := agreement(of):
            lines.append((name, "order of the methods", *_ordered(found)))
    return [*markdown_table(_HEAD, lines, "llrrl"), ""]


def _counted(found: Score) -> tuple[str, str, str]:
    beyond = _beyond(found.found, found.low, found.high, "fewer")
    return f"{found.found} of {found.count}", f"{found.mean:.0f} ({found.low} to {found.high})", beyond


def _ordered(found: Agreement) -> tuple[str, str, str]:
    text = f"tau {found.tau:.2f}"
    if found.interval:
        text += " ({:.2f} to {:.2f})".format(*found.interval)
    text += f", {found.victims} of the paper's victims"
    return text, f"({found.low:.2f} to {found.high:.2f})", _beyond(found.tau, found.low, found.high, "less")


def _beyond(found: float, low: float, high: float, below: str) -> str:
    return "more" if found > high else below if found < low else "no"
