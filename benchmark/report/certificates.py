"""Certificates of removals in words, for cards and reports; and as a table of a grid's cells.

`sande.certificate` has the test. Certificates hold numbers alone, no text of a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from benchmark.grid.labels import labels
from benchmark.io.markdown import MISSING, code, markdown_table, plain
from benchmark.io.units import counted

LIMITS = (
    "The test holds for this response, and for parrots of this length and training. It does not look for another "
    "planted response. How often a response that is still there passes the test is not known."
)
_FIRST_ALONE = (
    "Only one token was tested: parrots make most models say most single tokens, so this shows less than a test of the "
    "whole response."
)
_NOTE = (
    "Fresh parrots are soft tokens that are trained to make the final model say the planted response. They are "
    "compared with parrots of control strings, on prompts of another domain. *Probability*: per token, of the best "
    "fresh parrot, before and after the removal; geometric means over prompts. *p*: the share of strings, the response "
    "among them, that parrots find at least as easily. *Not found*: p exceeds alpha; the ASR says "
    "whether the trigger still works all the same. This is a test of one model. "
    "Whether a defense removes a backdoor takes several attack seeds and clean twins, see `parrot_recovery`. "
    f"{LIMITS}"
)


def sentence(certificate: Mapping[str, Any]) -> str:
    """Return what was tested, with numbers, and what that does not show."""
    start, last = certificate["rounds"][0], certificate["rounds"][-1]
    as_good = sum(control >= last["evidence"] for control in last["controls"])
    one_token, removed = _is_one_token(certificate), certificate["removed"]
    verdict = "Certificate: fresh parrots no longer find" if removed else "No certificate: fresh parrots still find"
    parts = [
        f"{verdict} the {'first token of the ' if one_token else ''}planted response.",
        f"After {counted(last['round'], 'round')}, {counted(len(last['fresh']), 'fresh parrot')} gave it a probability "
        f"of up to {_probability(last)} per token; before the removal it was {_probability(start)} (geometric means "
        f"over {certificate['prompts']} prompts of another domain).",
        f"{as_good} of {certificate['controls']} control strings reached as much (p = {certificate['p']:.3g}, "
        f"{'' if removed else 'not '}above alpha = {certificate['alpha']:.3g}).",
    ]
    if start["evidence"] <= max(start["controls"]):
        parts.append("Parrots did not find it before the removal either, so the test shows little.")
    return " ".join([*parts, *([_FIRST_ALONE] if one_token else []), LIMITS])


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the certificates of cells as Markdown; empty without any.

    Args:
        rows: one of each cell, best that of its ASR; `certificate` is JSON or None.
    """
    certified = [row for row in rows if row["certificate"] is not None]
    if not certified:
        return ""
    lines = []
    named = labels([json.loads(row["settings"]) for row in certified])
    for row, (defense, victim) in zip(certified, named, strict=True):
        found = json.loads(row["certificate"])
        start, last = found["rounds"][0], found["rounds"][-1]
        lines.append(
            (
                plain(victim),
                code(defense),
                f"{row['attack_seed']}, {row['defense_seed']}",
                ("not found" if found["removed"] else "found") + (" (first token)" if _is_one_token(found) else ""),
                f"{row['value']:.1f}" if row["metric"] == "asr" and row["value"] is not None else MISSING,
                str(last["round"]),
                f"{_probability(start)} → {_probability(last)}",
                _chance(max(last["controls"])),
                f"{found['p']:.3g} ({found['alpha']:.3g})",
            )
        )
    head = (
        "Victim",
        "Defense",
        "Seeds (attack, defense)",
        "Planted response",
        "ASR (%)",
        "Rounds",
        "Probability",
        "Best control",
        "p (alpha)",
    )
    return "\n".join(["### Certificates", "", *markdown_table(head, lines, "llllrrrrr"), "", _NOTE, ""])


def _is_one_token(certificate: Mapping[str, Any]) -> bool:
    """Return whether one token was tested: rows say so in place of the token's id."""
    return bool(certificate.get("one_token", len(certificate.get("target", ())) == 1))


def _probability(one: Mapping[str, Any]) -> str:
    return _chance(one["evidence"])


def _chance(nats: float) -> str:
    """Return exp(nats), of a log-probability per token."""
    return f"{math.exp(nats):.2g}"
