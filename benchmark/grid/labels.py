"""Labels of cells: their names, and the settings that distinguish one cell from the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import SEEDS
from sande.config import PUBLISHED

Settings = Mapping[str, Any]


def defense_name(defense: Settings, name: str = "") -> str:
    """Return a defense's name, with its recipe where that is its authors', such as `crow (published)`.

    Args:
        defense: settings of the defense.
        name: what a board calls the defense; without it, its own name.
    """
    name = name or str(defense["name"])
    return f"{name} ({PUBLISHED})" if defense.get("recipe") == PUBLISHED else name


def labels(settings: Sequence[Settings]) -> list[tuple[str, str]]:
    """Return the (defense, victim) label of each cell: names, and every setting that distinguishes it from the others.

    Every setting counts but the seeds. The data set for removal is named only where one setting (in-domain,
    out-of-domain) has several.

    Args:
        settings: of each cell, every default spelled out.
    """
    flat = [dict(flatten(prompt_format.named(values))) for values in settings]
    removal_sets: dict[tuple[Any, str], set[Any]] = {}
    by_defense: dict[str, list[dict[str, Any]]] = {}
    for values in flat:
        removal_sets.setdefault((values["data.name"], _domain(values)), set()).add(values["removal.name"])
        by_defense.setdefault(_defense(values), []).append(values)
    of_defense = {name: shorten(varying(group, "defense.")) for name, group in by_defense.items()}
    named_already = {*SEEDS, "model", "data.name", "removal.name"}
    of_victim = shorten({path for path in varying(flat) if not path.startswith("defense.")} - named_already)
    found = []
    for values in flat:
        model = str(values["model"]).rstrip("/").split("/")[-1]
        victim = [f"{model} / {values['data.name']}", _domain(values)]
        if len(removal_sets[values["data.name"], _domain(values)]) > 1:
            victim.append(f"removal {values['removal.name']}")
        victim += [f"{short}={values.get(path)}" for path, short in of_victim.items()]
        defense = [_defense(values)]
        defense += [f"{short}={values.get(path)}" for path, short in of_defense[_defense(values)].items()]
        found.append((", ".join(defense), ", ".join(victim)))
    return found


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
        differing = shorten(varying(flat.values()) - {*SEEDS})
        for settings, values in flat.items():
            extra = {path: f", {short}={values.get(path)}" for path, short in differing.items()}
            of_defense = [text for path, text in extra.items() if path.startswith("defense.")]
            of_victim = [text for path, text in extra.items() if not path.startswith("defense.")]
            unique[settings] = "".join([defense, *of_defense]), "".join([victim, *of_victim])
    return unique


def _defense(flat: Settings) -> str:
    return defense_name({"name": flat["defense.name"], "recipe": flat.get("defense.recipe")})


def _domain(flat: Settings) -> str:
    return "in-domain" if flat["removal.name"] == flat["data.name"] else "out-of-domain"


def flatten(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each setting; the path of a metric's setting is `metrics.NAME.setting`.

    Args:
        settings: of a cell or a part of it.
        prefix: that every path begins with.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif key == "metrics":
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
