"""A grid of exactly these cells, as `verify` and `repeat` run some cells again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import Cell


def listed(cells: Sequence[Cell], about: str) -> dict[str, Any]:
    """Return the contents of a grid file with these cells.

    Args:
        cells: at least one.
        about: what the grid is for.
    """
    settings = [{prompt_format.SETTING: prompt_format.PAPER, **cell.settings()} for cell in cells]
    paths = list(settings[0])
    return {
        "about": about,
        "sweep": {", ".join(paths): [[values[name] for name in paths] for values in settings]},
    }
