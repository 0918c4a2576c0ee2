"""The section `sweep` of a grid: its axes, and one sweep over another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmark.grid import wildcards
from benchmark.grid.cell import SEED, SEEDS, with_both_seeds
from benchmark.grid.rules import METHODS
from sande import registry
from sande.errors import UserError


def axes(sweep: Any) -> Iterable[list[list[tuple[str, Any]]]]:
    """Yield for each axis its points, each a list of (path, value)."""
    if not isinstance(sweep, Mapping):
        raise UserError(f"sweep: expected paths with lists of values, got {sweep!r}")
    with_both_seeds(dict.fromkeys(_paths(sweep)), "sweep")
    for key, points in sweep.items():
        paths = list(_paths([key]))
        if str(key) in METHODS:
            points = _methods(str(key), points)
        if not isinstance(points, list) or not points:
            raise UserError(f"sweep: '{key}' needs a list of at least one value, got {points!r}")
        axis = []
        for point in points:
            together = [point] if len(paths) == 1 else point
            if not isinstance(together, list) or len(together) != len(paths):
                raise UserError(
                    f"sweep: '{key}' sets {len(paths)} fields, so each point is a list of as many: {point!r}"
                )
            axis.append(list(with_both_seeds(dict(zip(paths, together, strict=True)), "sweep").items()))
        yield axis


def refuse_twice(sweep: Mapping[Any, Any]) -> None:
    """Raise UserError where two axes of one file sweep a path, since one of them would vanish."""
    paths = list(_paths(sweep))
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"sweep: '{twice}' is in two axes; remove one")


def over(inner: Mapping[Any, Any], outer: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a sweep with another one over it, which replaces the values of the same paths.

    `seed` sets both seeds, so it replaces `attack_seed` and `defense_seed`, and either of them replaces it. A mistake
    in the inner sweep is left for `axes`.
    """
    replaced = {other for path in _paths(outer) for other in _same_seeds(path)}
    # A key that both have keeps its place, and so the order of the cells.
    kept = (item if item[0] in outer else _without(replaced, *item) for item in inner.items())
    return {**{key: points for key, points in kept if key}, **outer}


def _same_seeds(path: str) -> tuple[str, ...]:
    """Return the paths of a sweep that set a seed that this path sets."""
    return (SEED, *SEEDS) if path == SEED else (SEED, path) if path in SEEDS else ()


def _without(gone: set[str], key: Any, points: Any) -> tuple[Any, Any]:
    """Return an axis without some of its paths; its key is empty where none is left."""
    paths = list(_paths([key]))
    left = [number for number, path in enumerate(paths) if path not in gone]
    if len(left) in (0, len(paths)):
        return (key if left else ""), points
    if not isinstance(points, list) or any(not isinstance(point, list) or len(point) != len(paths) for point in points):
        return key, points
    values = [[point[number] for number in left] for point in points]
    return ", ".join(paths[number] for number in left), values if len(left) > 1 else [value for (value,) in values]


def _paths(keys: Iterable[Any]) -> Iterator[str]:
    """Yield the paths in the keys of a sweep."""
    for key in keys:
        yield from (path.strip() for path in str(key).split(","))


def _methods(key: str, points: Any) -> Any:
    """Return the points of a sweep over attacks or defenses, with words replaced by their entries."""
    kind = METHODS[key]
    if isinstance(points, str) and points != wildcards.ALL:
        names = ", ".join(registry.names(kind))
        raise UserError(
            f"sweep: '{key}' is '{points}'; give a list of {kind}, or '{wildcards.ALL}' for each of: {names}"
        )
    points = [points] if points == wildcards.ALL else points
    return wildcards.expand(kind, points) if isinstance(points, list) else points
