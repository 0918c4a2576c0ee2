"""Labels of cells: their names, and the settings that distinguish one cell from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE, SEEDS
from sande.config import PUBLISHED

Settings = Mapping[str, Any]

FEW = 2  # settings that labels spell out for all cells
_COLUMN = ("model", "data.name", "removal.name")  # what every label of a victim says
_ATTACK = "attack.name"
_ALWAYS = (_ATTACK, "attack.objective")  # never left out where they vary, and the first ones
_TRIGGER, _RESPONSE = "attack.backdoor.trigger", "attack.backdoor.response"  # likewise where both vary; then come these
_RATE, _COUNT = "attack.poison_rate", "attack.poison_rows"
TWIN = "clean twin"  # of a victim, in place of its poison rate of 0


def defense_name(defense: Settings, name: str = "") -> str:
    """Return a defense's name, with its recipe where that is its authors', such as `crow (published)`.

    Args:
        defense: settings of the defense.
        name: what a board calls the defense; without it, its own name.
    """
    name = name or str(defense["name"])
    return f"{name} ({PUBLISHED})" if defense.get("recipe") == PUBLISHED else name


def labels(settings: Sequence[Settings]) -> list[tuple[str, str]]:
    """Return the (defense, victim) label of each cell: names, and the settings that distinguish it from the others.

    No label names a seed, nor a setting that follows from the names: the rows of a data set, the trigger of an attack,
    a defense's settings for a model or for removal in another domain, or how an attack's victims are measured. The
    domain of the removal is named only where some cell has a defense, its data set where one domain has several. Where
    more than `FEW` settings vary, labels leave out the most frequent value, see `usual`. A poison rate of 0 is called
    `TWIN`; a trigger and a response that both vary are `TRIGGER → RESPONSE`.

    Args:
        settings: of each cell, every default spelled out.
    """
    flat = _flat(settings)
    removal_sets: dict[tuple[Any, str], set[Any]] = {}
    for values in flat:
        removal_sets.setdefault((values["data.name"], _domain(values)), set()).add(values["removal.name"])
    of_victim, of_defense = _distinguishing(flat)
    are_repaired = any(values["defense.name"] != NO_DEFENSE for values in flat)
    found = []
    for values in flat:
        model = str(values["model"]).rstrip("/").split("/")[-1]
        victim = [f"{model} / {values['data.name']}"]
        if are_repaired:
            victim.append(_domain(values))
            if len(removal_sets[values["data.name"], _domain(values)]) > 1:
                victim.append(f"removal {values['removal.name']}")
        defense = [_defense(values)]
        found.append(
            (", ".join(defense + of_defense[_defense(values)].of(values)), ", ".join(victim + of_victim.of(values)))
        )
    return found


def usual(settings: Sequence[Settings]) -> dict[str, str]:
    """Return the most frequent values, which `labels` leaves out: by defense, and for victims by "".

    Args:
        settings: of each cell, as for `labels`.
    """
    of_victim, of_defense = _distinguishing(_flat(settings))
    found = {name: named.left_out() for name, named in {"": of_victim, **of_defense}.items()}
    return {name: text for name, text in found.items() if text}


class _Distinguishing:
    """The settings that distinguish the cells of a group.

    Args:
        group: flattened settings of each cell.
        paths: of settings that vary.
        given: paths that a label names anyway; a setting that follows from their values is no distinction.
    """

    def __init__(self, group: Sequence[Settings], paths: Iterable[str], given: Sequence[str]) -> None:
        short = shorten(path for path in paths if not _follows(path, given, group))
        order = (*_ALWAYS, _TRIGGER, _RESPONSE)
        self._short = {path: short[path] for path in (*filter(short.__contains__, order), *short)}
        self._usual: dict[str, Any] = {}
        if len(short) > FEW:
            backdoor = {_TRIGGER, _RESPONSE}
            for path in short.keys() - {*_ALWAYS, *(backdoor if backdoor <= short.keys() else ())}:
                having = [one[path] for one in group if path in one and (path != _RATE or one[path])]  # without twins
                first, *others = Counter(map(repr, having)).most_common(2)
                if not others or first[1] > others[0][1]:
                    self._usual[path] = next(value for value in having if repr(value) == first[0])

    def of(self, values: Settings) -> list[str]:
        """Return what distinguishes a cell."""
        named = {
            path: str(values[path]) if path == _ATTACK else f"{short}={values[path]}"
            for path, short in self._short.items()
            if path in values and not (path in self._usual and repr(values[path]) == repr(self._usual[path]))
        }
        if named.keys() >= {_TRIGGER, _RESPONSE}:
            named[_RESPONSE] = f"{values[_TRIGGER]} → {values[_RESPONSE]}"
            del named[_TRIGGER]
        if named.get(_RATE) and not values[_RATE]:
            del named[_RATE]
            named[_RATE] = TWIN  # as the last part
        return list(named.values())

    def left_out(self) -> str:
        """Return the values that most cells have, and that no label names."""
        return ", ".join(f"{short}={self._usual[path]}" for path, short in self._short.items() if path in self._usual)


def _distinguishing(flat: Sequence[Settings]) -> tuple[_Distinguishing, dict[str, _Distinguishing]]:
    """Return what distinguishes victims, and the cells of each defense."""
    by_defense: dict[str, list[Settings]] = {}
    for values in flat:
        by_defense.setdefault(_defense(values), []).append(values)
    of_defense = {
        name: _Distinguishing(group, varying(group, "defense."), _COLUMN) for name, group in by_defense.items()
    }
    of_victims = {path for path in varying(flat) if not path.startswith("defense.")} - {*SEEDS, *_COLUMN}
    later = {path for path in of_victims if path.startswith(("metrics.", "removal."))}
    known = (*_COLUMN, _ATTACK, *sorted(of_victims - later))
    # Such as longer answers where the response stands at their end: the victim's other settings name it already.
    of_victims -= {path for path in later if _follows(path, known, flat)}
    return _Distinguishing(flat, of_victims, (*_COLUMN, _ATTACK)), of_defense


def _follows(path: str, given: Sequence[str], group: Sequence[Settings]) -> bool:
    """Return whether the value of a path follows from those of others, in the cells that have it."""
    others = [name for name in given if name != path]
    pairs = {(*(repr(values.get(name)) for name in others), repr(values[path])) for values in group if path in values}
    return len(pairs) == len({pair[:-1] for pair in pairs})


def _flat(settings: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return flattened settings; a section that is null in other cells is there itself, too, as `set`.

    A clean twin has no number of poisoned rows.
    """
    flat = [dict(flatten(prompt_format.named(values))) for values in settings]
    for values in flat:
        if values.get(_RATE) == 0:
            values.pop(_COUNT, None)
    paths = set[str]().union(*flat)
    null = {path for values in flat for path, value in values.items() if value is None}
    sections = {path: {inner for inner in paths if inner.startswith(f"{path}.")} for path in null}
    for section, inside in ((section, inside) for section, inside in sections.items() if inside):
        for values in flat:
            if not inside.isdisjoint(values):
                values[section] = "set"
    return flat


def made_unique(named: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return the labels with the differing settings, but no seed, appended to those that several cells have in common.

    Args:
        named: label of each cell, by its settings as JSON.
    """
    same: dict[tuple[str, str], list[str]] = {}
    for settings, label in named.items():
        same.setdefault(label, []).append(settings)
    unique = {}
    for (defense, victim), several in same.items():
        flat = {settings: dict(flatten(prompt_format.named(json.loads(settings)))) for settings in several}
        differing = shorten(_differing(list(flat.values())))
        for settings, values in flat.items():
            extra = {path: f", {short}={_at(path, values)}" for path, short in differing.items()}
            of_defense = [text for path, text in extra.items() if path.startswith("defense.")]
            of_victim = [text for path, text in extra.items() if not path.startswith("defense.")]
            unique[settings] = "".join([defense, *of_defense]), "".join([victim, *of_victim])
    return unique


def _differing(flat: Sequence[Settings]) -> set[str]:
    """Return the paths in which cells differ, seeds aside, those that an earlier version did not have included.

    Of a section that some cell lacks whole it is the section's path. A metric that one cell does not have is no
    difference: its own numbers show that.
    """
    found = set[str]()
    for path in set[str]().union(*flat) - {*SEEDS}:
        metric = f"{'.'.join(path.split('.')[:2])}.name" if path.startswith("metrics.") else ""
        having = [values for values in flat if not metric or metric in values]
        if len({repr(values.get(path)) for values in having}) > 1:
            sections = (path[:end] for end, letter in enumerate(path) if letter == "." and "." in path[:end])
            lacking = (one for one in sections if any(_at(one, values) is None for values in having))
            found.add(next(lacking, path))
    return found


def _at(path: str, flat: Settings) -> Any:
    """Return the value at a path, "set" for a section with some value, and None for what is not there."""
    if path in flat:
        return flat[path]
    return "set" if any(name.startswith(f"{path}.") for name in flat) else None


def _defense(flat: Settings) -> str:
    return defense_name({"name": flat["defense.name"], "recipe": flat.get("defense.recipe")})


def _domain(flat: Settings) -> str:
    return "in-domain" if flat["removal.name"] == flat["data.name"] else "out-of-domain"


def flatten(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each setting; the path of a metric's setting is `metrics.NAME.setting`.

    Args:
        settings: of a cell or a part of it.
        prefix: that every path begins with; without it, `metrics` is the list of the cell's metrics.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif key == "metrics" and not prefix:
            for metric in value:
                yield from flatten(metric, f"metrics.{metric['name']}.")
        else:
            yield f"{prefix}{key}", value


def varying(settings: Iterable[Settings], prefix: str = "") -> set[str]:
    """Return the paths that have several values.

    Args:
        settings: flattened, of each cell; a path may be absent from some of them.
        prefix: paths that begin otherwise are left out.
    """
    seen: dict[str, set[str]] = {}
    for values in settings:
        for path, value in values.items():
            if path.startswith(prefix):
                seen.setdefault(path, set()).add(repr(value))
    return {path for path, distinct in seen.items() if len(distinct) > 1}


def shorten(paths: Iterable[str]) -> dict[str, str]:
    """Return each path, in order, with its short form: without its first part, where no two short forms are alike."""
    tails = {path: path.split(".", 1)[-1] for path in sorted(paths)}
    count = Counter(tails.values())
    return {path: tail if count[tail] == 1 else path for path, tail in tails.items()}


def written(value: Any) -> str:
    """Return a value as a grid has it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)
