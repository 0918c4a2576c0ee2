"""Candidates of a scan as JSON has them: in facts of a defense, in the report of `clean` and in `scan.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sande.types import Candidate


def as_records(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return text, token ids and score of each candidate, in their order."""
    return [{"text": each.text, "ids": list(each.ids), "score": each.score} for each in candidates]
