"""The victims of a table or figure: short labels, without what all or most have, and those without any defense."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmark.io.markdown import plain
from benchmark.records.aggregate import TableEntry

MANY = 6  # victims; of more labels, short ones leave out what most have, too
_BETWEEN = re.compile(r", | / ")  # parts of a label, see `benchmark.grid.labels`
_DOMAINS = {"in-domain", "out-of-domain"}


class Short(NamedTuple):
    """Short labels, and what they leave out.

    Attributes:
        labels: by the whole label.
        common: parts that all have.
        usual: parts that most have, of places where every label has one.
    """

    labels: dict[str, str]
    common: str = ""
    usual: str = ""

    def sentences(self, noun: str = "victims") -> list[str]:
        """Return what to say below a table with these labels."""
        found = [f"All {noun}: {plain(self.common)}."] if self.common else []
        return [*found, f"Where a label says nothing else: {plain(self.usual)}."] if self.usual else found


def shortened(labels: Iterable[str], places: Sequence[int] | None = None) -> Short:
    """Return each label without the parts that all have; of more than `MANY` also without those that most have.

    Labels keep more where there is one alone, where one would be empty, or where two would be the same.

    Args:
        labels: their parts have ", " or " / " between them.
        places: indices of the parts that every label has, and that short labels may leave out; None: model, data and
            domain of a label that `benchmark.grid.labels` made.
    """
    parts = {label: _BETWEEN.split(label) for label in labels}
    common = [part for part in next(iter(parts.values()), []) if all(part in some for some in parts.values())]
    places = _grid_places(parts) if places is None else places
    usual = {place: part for place, part in _usual(parts.values(), places).items() if part not in common}
    for leave_out, at in ((common, usual), (common, {}), (common[:-1], {})):
        short = {label: ", ".join(_kept(some, leave_out, at)) for label, some in parts.items()}
        if [*leave_out, *at] and all(short.values()) and len(set(short.values())) == len(parts) > 1:
            return Short(short, ", ".join(leave_out), ", ".join(at.values()))
    return Short({label: label for label in parts})


def _usual(labels: Collection[Sequence[str]], places: Sequence[int]) -> dict[int, str]:
    """Return the part that more than half of many labels have, by place."""
    if len(labels) <= MANY:
        return {}
    found = {place: Counter(parts[place] for parts in labels).most_common(1)[0] for place in places}
    return {place: part for place, (part, count) in found.items() if 2 * count > len(labels)}


def _grid_places(labels: Mapping[str, Sequence[str]]) -> list[int]:
    """Return the places of model, data and domain; none of other labels, such as the paper's names."""
    if not all(" / " in label for label in labels):
        return []
    return [0, 1, 2] if all(_DOMAINS.issuperset(parts[2:3]) and parts[2:] for parts in labels.values()) else [0, 1]


def _kept(parts: Sequence[str], common: Collection[str], usual: Mapping[int, str]) -> list[str]:
    left_out = {place % len(parts) for place, part in usual.items() if parts[place] == part}
    return [part for place, part in enumerate(parts) if part not in common and place not in left_out]


def undefended(entries: Iterable[TableEntry]) -> set[str]:
    """Return the victims that only stand for themselves, such as clean twins, where others have defenses."""
    applied: dict[str, bool] = {}
    for entry in entries:
        applied[entry.victim] = applied.get(entry.victim, False) or not entry.is_victim
    return {victim for victim, is_defended in applied.items() if not is_defended} if any(applied.values()) else set()
