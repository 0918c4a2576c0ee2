"""Data sets that have fewer rows than a grid asks for, found without loading any that is known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import inf

from benchmark.forecast.cost import SIZES
from benchmark.grid.cell import NO_DEFENSE, Cell
from sande.data import datasets
from sande.data.splits import Data, Rows, train_split
from sande.errors import UserError


def few_rows(cells: Iterable[Cell], *, broken: bool = False) -> list[str]:
    """Return a sentence for each data set that has fewer training rows than the cells ask for.

    Args:
        cells: of a grid.
        broken: return one for each file that cannot be read, too, with which a run would end.
    """
    notes: dict[str, None] = {}

    @cache
    def size(name: str) -> float:
        is_file = datasets.fingerprint(name).startswith("sha256:")  # also one with the name of a known data set
        try:
            rows = SIZES[name] if name in SIZES and not is_file else len(datasets.examples(name))
        except UserError as error:
            if broken:
                notes[f"a run would end: {error}"] = None
            return inf
        return len(train_split(range(rows)))

    for cell in cells:
        asked: list[tuple[str, Data | Rows]] = [("data", cell.data)]
        if cell.defense.name != NO_DEFENSE and cell.defense.pairs is None:
            asked.append(("removal", cell.removal))
        for section, wanted in asked:
            if wanted.rows and (most := size(wanted.name)) < wanted.rows:
                notes[
                    f"{section}.rows is {wanted.rows}, but {wanted.name} has {most} training rows, and no more are "
                    f"used; set {section}.rows to {most}, or choose a larger data set"
                ] = None
    return list(notes)
