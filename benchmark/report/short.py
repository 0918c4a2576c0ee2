"""Short labels of victims: without what all victims of a table or figure have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
