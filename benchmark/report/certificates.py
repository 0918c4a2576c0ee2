"""Certificates of removals in words, for cards and reports; and as a table of a grid's cells.

`sande.certificate` has the test. Certificates hold numbers alone, no text of a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmark.io.markdown import code, markdown_table
from benchmark.paper.numbers import column_name

LIMITS = (
    "It holds for this response and for parrots of this length and training: another planted response, or one that "
    "such parrots do not reach, is not tested."
)
_NOTE = (
    "Fresh parrots, soft tokens that are trained to make the final model say the planted response, are compared with "
    "parrots of control strings, on prompts of another domain. Probabilities are geometric means over prompts, per "
    "token; `p` is the share of strings, r_t among them, that are found as easily. *Removed* means that p exceeds "
    f"alpha. {LIMITS}"
)


def sentence(certificate: Mapping[str, Any]) -> str:
    """Return what was tested, with numbers, and what that does not show."""
    start, last = certificate["rounds"][0], certificate["rounds"][-1]
    as_good = sum(control >= last["evidence"] for control in last["controls"])
    verdict = (
        "Certificate: the planted response is removed, as far as fresh parrots can tell."
        if certificate["removed"]
        else "No certificate: fresh parrots still find the planted response."
    )
    relation = "above" if certificate["removed"] else "not above"
    parts = [
        f"{verdict} After {_count(last['round'], 'round')}, {_count(len(last['fresh']), 'fresh parrot')} gave it a "
        f"probability of up to {_probability(last)} a token (geometric mean over {certificate['prompts']} prompts of "
        f"another domain; before the removal {_probability(start)}), and {as_good} of {certificate['controls']} "
        f"control strings reached as much (p = {certificate['p']:.3g}, {relation} alpha = {certificate['alpha']:.3g}).",
    ]
    if start["evidence"] <= max(start["controls"]):
        parts.append("Parrots did not find the response before the removal either, so the test shows little.")
    return " ".join([*parts, LIMITS])


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the certificates of cells as Markdown; empty without any.

    Args:
        rows: one of each cell; `certificate` is JSON or None.
    """
    lines = []
    for row in rows:
        if row["certificate"] is None:
            continue
        found = json.loads(row["certificate"])
        start, last = found["rounds"][0], found["rounds"][-1]
        lines.append(
            (
                f"{column_name(row['model'], row['dataset'])} ({row['setting']}), {row['attack']}",
                code(row["defense"]),
                f"{row['attack_seed']}, {row['defense_seed']}",
                "removed" if found["removed"] else "left",
                str(last["round"]),
                f"{_probability(start)} → {_probability(last)}",
                _chance(max(last["controls"])),
                f"{found['p']:.3g} ({found['alpha']:.3g})",
            )
        )
    if not lines:
        return ""
    head = ("Victim", "Defense", "Seeds", "Response", "Rounds", "Probability", "Best control", "p (alpha)")
    return "\n".join(["### Certificates", "", *markdown_table(head, lines, "lllrrrrr"), "", _NOTE, ""])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _probability(one: Mapping[str, Any]) -> str:
    return _chance(one["evidence"])


def _chance(nats: float) -> str:
    """Return exp(nats), of a log-probability per token."""
    return f"{math.exp(nats):.2g}"
