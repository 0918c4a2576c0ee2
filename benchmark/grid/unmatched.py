"""Refuse rules of a grid's own that match no cell of it, as one with a mistyped value in `where` does.

A rule that changes cells never looks at `--set` and at the scale, which come after it, so it is wrong if it matches
nothing. A rule on resources looks at what the cell is in the end: it may be for a model that `--set` or a scale
chooses, and is refused only for a model's name that is mistyped. A scale serves many grids, and may match nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmark.grid.rules import Rule, near, values_at
from sande.errors import UserError
from sande.models import catalog

SHOWN = 8  # values of cells in a message


class Unmatched:
    """Rules of a grid that have matched no cell so far, and the values that cells have instead."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Wait for each rule that changes some cells."""
        waiting = [rule for rule in rules if rule.where and (rule.set or rule.default)]
        self._rules = {rule.place: rule for rule in waiting}
        # By rule and path: values of cells as a message shows them, and whether the rule wants them.
        self._seen: dict[str, dict[str, dict[str, bool]]] = {
            rule.place: {path: {} for path in rule.where} for rule in waiting
        }

    def look(self, rule: Rule, nested: Mapping[str, Any]) -> None:
        """Look whether a rule matches a cell, as it is before the rule is applied."""
        if rule.place not in self._seen:
            return
        if rule.matches(nested):
            del self._seen[rule.place]
            return
        for path, wanted in rule.where.items():
            self._seen[rule.place][path] |= {repr(value): value in wanted for value in values_at(nested, path)}

    def refuse(self) -> None:
        """Refuse the first rule that matched no cell.

        Raises:
            UserError: there is one; the message says what it could have matched.
        """
        for place, by_path in self._seen.items():
            for path, values in by_path.items():
                if not any(values.values()):
                    wanted = " or ".join(map(repr, self._rules[place].where[path]))
                    raise UserError(f"{place}, where: '{path}' is {wanted} in no cell; {_instead(values)}")
            raise UserError(
                f"{place}, where: no cell has all of these values of {' and '.join(map(repr, by_path))}; change one, "
                "or remove the rule"
            )


def _instead(values: Mapping[str, bool]) -> str:
    """Return what the rule could have matched."""
    if not values:
        return "no method of this grid has that setting; remove the rule"
    more = ", …" if len(values) > SHOWN else ""
    return f"use {', '.join(list(values)[:SHOWN])}{more}, or remove the rule"


def refuse_mistyped(rules: Iterable[Rule]) -> None:
    """Refuse a model in `where` that is nothing here, and is spelled nearly as a known one.

    Raises:
        UserError: a rule has one.
    """
    for rule in rules:
        for model in map(str, rule.where.get("model", ())):
            if model not in catalog.ABOUT and not Path(model).exists() and (meant := near(model, catalog.ABOUT)):
                raise UserError(f"{rule.place}, where: no model is called '{model}'; use {meant}")
