"""A cell's nested settings by dotted path, and rules, by which a grid or a scale changes the cells that match.

rules:
  - where: {model: llama2-7b, defense: [sande, sande_p]}  # all must match, by one value of a list; default: every cell
    set: {data.name: builtin-short}                       # replaces the grid's value
    default: {data.rows: 1400}                            # where the grid itself has no value
  - where: {model: llama2-7b}
    set: {resources.attack.workers: 4}                    # of its stages, see `benchmark.grid.stage_resources`
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmark.grid import wildcards
from benchmark.grid.cell import DEFAULTS, NO_DEFENSE, SEED, SEEDS, with_both_seeds
from sande import registry
from sande.config import PUBLISHED, as_dict, describe, published
from sande.data.splits import Data, Removal
from sande.errors import UserError

METHODS = {"attack": "attacks", "defense": "defenses"}
_NAMED = {**METHODS, "metrics": "metrics"}  # settings whose values are names of the registry
_SECTIONS: dict[str, type[Any]] = {"data": Data, "removal": Removal}
_KEYS = ("where", "set", "default")
RESOURCES = "resources"
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `rules`.

    Attributes:
        where: values by path, of which a cell must have one; its defaults count too. A method is matched by its name,
            and `metrics` by the name of any of them. `seed` is matched where both seeds have the value.
        set: by path, the value that the cell gets; a path into a method that lacks the setting is skipped.
        default: as `set`, but only for paths at which neither the grid itself nor a method's published recipe has a
            value.
        resources: values of `set` for the stages of the cell, by path below `resources`.
        place: name of the rule in messages.
    """

    where: Mapping[str, tuple[Any, ...]]
    set: Mapping[str, Any]
    default: Mapping[str, Any]
    resources: Mapping[str, Any] = field(default_factory=dict)
    place: str = "rule"

    def matches(self, nested: Mapping[str, Any]) -> bool:
        """Return whether a cell's nested settings have a wanted value at every path of `where`."""
        return all(_matches(nested, path, wanted) for path, wanted in self.where.items())

    def apply(self, nested: dict[str, Any], given: Mapping[str, Any]) -> None:
        """Change `nested` in place if it matches; `given` has the grid's own values, before any rule."""
        if self.matches(nested):
            silent = {
                path: value
                for path, value in self.default.items()
                if _dig(given, path.split(".")) is _ABSENT and not _in_recipe(nested, path)
            }
            for path, value in {**self.set, **silent}.items():
                if takes(nested, path):
                    assign(nested, path, value)


def parse(entries: Any) -> list[Rule]:
    """Return the rules of a file.

    Raises:
        UserError: an entry is not a rule, or has an unknown key or path; the message names the rule.
    """
    if not isinstance(entries, list):
        raise UserError(f"rules: expected a list of rules with '{_KEYS[0]}' and '{_KEYS[1]}', got {entries!r}")
    return [_rule(entry, f"rule {number}") for number, entry in enumerate(entries, start=1)]


def _rule(entry: Any, place: str) -> Rule:
    if not isinstance(entry, Mapping):
        raise UserError(f"{place}: expected 'where' with 'set' or 'default', got {entry!r}")
    unknown = sorted(str(key) for key in entry if key not in _KEYS)
    if unknown:
        raise UserError(f"{place}: unknown key '{unknown[0]}'; valid keys: {', '.join(_KEYS)}")
    for key in _KEYS:
        if not isinstance(entry.get(key, {}), Mapping):
            raise UserError(f"{place}: '{key}' is {entry[key]!r}, not a mapping of paths to values")
        for path in entry.get(key, {}):
            if key != "set" or not _is_resources(path):
                _check(str(path), f"{place}, {key}")
    if not entry.get("set") and not entry.get("default"):
        raise UserError(f"{place}: changes nothing; add paths and values under 'set' or 'default'")
    where = {path: _wanted(str(path), value, f"{place}, where") for path, value in entry.get("where", {}).items()}
    given = entry.get("set", {})
    changes, defaults = (
        with_both_seeds({path: value for path, value in values.items() if not _is_resources(path)}, f"{place}, {key}")
        for key, values in (("set", given), ("default", entry.get("default", {})))
    )
    resources = {path.partition(".")[2]: value for path, value in given.items() if _is_resources(path)}
    return Rule(where, changes, defaults, resources, place)


def _wanted(path: str, given: Any, place: str) -> tuple[Any, ...]:
    """Return the values of which a cell must have one at a path.

    Raises:
        UserError: no cell can have one of them, so the rule would never apply.
    """
    values = tuple(given) if isinstance(given, list) else (given,)
    key, _, rest = path.partition(".")
    names = registry.names(_NAMED[key]) if key in _NAMED and rest in ("", "name") else None
    if not values:
        raise UserError(f"{place}: '{path}' has an empty list, which no cell matches; add a value")
    for value in values:
        if isinstance(value, Mapping) and not rest:
            raise UserError(f"{place}: '{path}' is {value!r}; use its name alone, and paths for other settings")
        if path in (SEED, *SEEDS) and type(value) is not int:
            raise UserError(f"{place}: '{path}' is {value!r}, not a whole number; write it without quotes")
        if names and value not in names:
            use = near(str(value), names) or ", ".join(names)
            raise UserError(f"{place}: no {_NAMED[key].removesuffix('s')} is called {value!r}; use {use}")
    return values


def near(given: str, valid: Iterable[str]) -> str:
    """Return the valid names that a mistyped one may stand for; empty if none is like it."""
    return " or ".join(f"'{name}'" for name in difflib.get_close_matches(given, sorted(set(valid)), n=2))


def _is_resources(path: Any) -> bool:
    return str(path).split(".")[0] == RESOURCES


def _check(path: str, place: str) -> None:
    """Refuse a path that no cell has; one that only some methods have is valid."""
    key, dot, rest = path.partition(".")
    if key in METHODS:
        names = registry.usable(METHODS[key])
        if dot and not any(_has(METHODS[key], name, rest) for name in names):
            like = near(rest, (field for name in names for field in _fields(METHODS[key], name)))
            use = f"use {like}, or " if like else ""
            raise UserError(f"{place}: no {key} has the setting '{rest}'; {use}see 'sande-bench show {key}s NAME'")
    elif key in _SECTIONS:
        fields = _section_defaults(key)
        if dot and rest not in fields:
            raise UserError(f"{place}: {key} has no setting '{rest}'; it has: {', '.join(sorted(fields))}")
    elif key == RESOURCES:
        raise UserError(f"{place}: resources are no setting of a cell; use '{path}' under 'set' of a rule")
    elif (key not in DEFAULTS and key != SEED) or dot:
        raise UserError(
            f"{place}: no cell has the setting '{path}'; paths begin with: {', '.join(sorted([*DEFAULTS, SEED]))}"
        )


def assign(nested: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path. Missing sections are made; those on the path are copied, since other cells share them.

    Raises:
        UserError: a part of the path holds a value that is not a section.
    """
    *parents, last = path.split(".")
    inner = nested
    for part in parents:
        section = inner.get(part)
        if section is not None and not isinstance(section, dict):
            raise UserError(
                f"'{path}' cannot be set, since '{part}' holds {section!r}; put settings under 'name:' instead"
            )
        inner[part] = dict(section or {})
        inner = inner[part]
    inner[last] = as_mapping(value) if path in METHODS else value


def as_mapping(method: Any) -> Any:
    """Return a method as a mapping with `name`, also where only its name is given."""
    return {"name": method} if isinstance(method, str) else method


def takes(nested: Mapping[str, Any], path: str) -> bool:
    """Return whether the cell's method has the setting, which another defense of the grid may lack."""
    key, dot, setting = path.partition(".")
    method = nested.get(key)
    if key not in METHODS or not dot or not isinstance(method, Mapping):
        return True
    return _has(METHODS[key], str(method.get("name")), setting)


def _in_recipe(nested: Mapping[str, Any], path: str) -> bool:
    """Return whether the cell's method has the published recipe, which sets this path."""
    key, _, setting = path.partition(".")
    method = nested.get(key)
    if key not in METHODS or not isinstance(method, Mapping) or method.get("recipe") != PUBLISHED:
        return False
    return setting in published(registry.entry(METHODS[key], str(method["name"])).Config)


def _matches(nested: Mapping[str, Any], path: str, wanted: tuple[Any, ...]) -> bool:
    return any(value in wanted for value in values_at(nested, path))


def values_at(nested: Mapping[str, Any], path: str) -> list[Any]:
    """Return what `where` compares at a path: the names of all metrics, else one value; none if the cell has none."""
    found = _value(nested, path)
    if path == "metrics" and isinstance(found, list):
        return [as_name(metric) for metric in wildcards.expand("metrics", found)]
    return [] if found is _ABSENT else [found]


def _value(nested: Mapping[str, Any], path: str) -> Any:
    """Return the cell's value at a path, or its default.

    It is the name for a method or a section, and for `seed` the value of both seeds.
    """
    key, *rest = path.split(".")
    if key in _SECTIONS and not rest:
        rest = ["name"]
    if key == SEED:
        attack, defense = (_value(nested, name) for name in SEEDS)
        return attack if attack == defense else _ABSENT
    if key == "defense_seed" and _value(nested, "defense") == NO_DEFENSE:
        key = "attack_seed"  # as the cell will have it
    found = _dig(nested, [key, *rest])
    if found is _ABSENT or (found is None and not rest):
        found = _dig(_defaults(nested, key), rest)
    return as_name(found)


def as_name(value: Any) -> Any:
    """Return the name of a method, and any other value as it is."""
    return value["name"] if isinstance(value, Mapping) and "name" in value else value


def _defaults(nested: Mapping[str, Any], key: str) -> Any:
    if key in METHODS:
        return _method_defaults(METHODS[key], str(as_name(nested.get(key) or DEFAULTS[key])))
    return _section_defaults(key) if key in _SECTIONS else DEFAULTS[key]


def _dig(values: Any, parts: Iterable[str]) -> Any:
    for part in parts:
        if not isinstance(values, Mapping) or part not in values:
            return _ABSENT
        values = values[part]
    return values


@functools.cache
def _method_defaults(kind: str, name: str) -> dict[str, Any]:
    return {"name": name, **as_dict(registry.entry(kind, name).Config())}


@functools.cache
def _section_defaults(key: str) -> dict[str, Any]:
    return as_dict(_SECTIONS[key]())


@functools.cache
def _has(kind: str, name: str, setting: str) -> bool:
    return any(f"{field}.".startswith(f"{setting}.") for field in ["name", *_fields(kind, name)])


@functools.cache
def _fields(kind: str, name: str) -> tuple[str, ...]:
    """Return the paths of all settings of a method."""
    return tuple(field.path for field in describe(registry.entry(kind, name).Config))
