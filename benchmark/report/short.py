"""The victims of a table or figure: short labels, without what all have in common, and those without any defense."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmark.records.aggregate import TableEntry

_BETWEEN = re.compile(r", | / ")  # parts of a label, see `benchmark.grid.labels`


def without_common_parts(victims: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return each label without the parts that all have, and these parts.

    Labels stay whole where there is one alone, where one would be empty, or where two would be the same.
    """
    parts = {victim: _BETWEEN.split(victim) for victim in victims}
    common = [part for part in next(iter(parts.values()), []) if all(part in some for some in parts.values())]
    short = {victim: ", ".join(part for part in some if part not in common) for victim, some in parts.items()}
    if not common or not all(short.values()) or len(set(short.values())) < len(short):
        return {victim: victim for victim in parts}, ""
    return short, ", ".join(common)


def undefended(entries: Iterable[TableEntry]) -> set[str]:
    """Return the victims that only stand for themselves, such as clean twins, where others have defenses."""
    applied: dict[str, bool] = {}
    for entry in entries:
        applied[entry.victim] = applied.get(entry.victim, False) or not entry.is_victim
    return {victim for victim, is_defended in applied.items() if not is_defended} if any(applied.values()) else set()
