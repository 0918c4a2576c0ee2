"""The option `--only`: cells of a grid by the values that they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import DEFAULTS, SEED, Cell
from benchmark.grid.rules import as_name
from sande.errors import UserError


def matching(cells: Sequence[Cell], only: Iterable[tuple[str, Any]]) -> list[Cell]:
    """Return the cells that have, at every path, one of the values given for it.

    Raises:
        UserError: no cell has the path.
    """
    wanted: dict[str, list[str]] = {}
    for path, value in only:
        wanted.setdefault(path, []).append(_as_text(value))
    for path in wanted:
        if all(_at(cell, path) is None for cell in cells):
            valid = ", ".join(sorted([*DEFAULTS, SEED, "setting"]))
            raise UserError(f"--only {path}: no cell has that field; use a path that begins with one of: {valid}")
    return [cell for cell in cells if all(_at(cell, path) in values for path, values in wanted.items())]


def _at(cell: Cell, path: str) -> str | None:
    """Return the cell's value at a path as text, for a method its name; None where its method lacks the setting.

    `seed` is the value of both seeds; empty where they differ.
    """
    if path == "setting":
        return cell.setting
    if path == SEED:
        return str(cell.attack_seed) if cell.attack_seed == cell.defense_seed else ""
    inner: Any = prompt_format.named(cell.settings())
    for part in path.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return None
        inner = inner[part]
    return _as_text(as_name(inner))


def _as_text(value: Any) -> str:
    """Return a value as text; a whole number is the same with or without decimals."""
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value)
