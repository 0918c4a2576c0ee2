"""What tells the cells of a plan apart, in words for its table.

Where more than `labels.FEW` settings do, those that most cells have are said once for all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from benchmark.forecast.cost import measured
from benchmark.grid import labels, prompt_format
from benchmark.grid.cell import Cell, Method
from sande import registry
from sande.config import PUBLISHED, published

_NAME, _METRICS = "attack.name", "metrics"  # paths: of a name, which stands alone; of metrics that not all cells have
LONG = 20  # characters of a list of metrics that becomes a note where several cells have it
# Sections of a cell, each with a key that equal ones share.
_SECTIONS: dict[str, Callable[[Cell], Hashable]] = {
    "attack": lambda cell: cell.attack.text,
    "data": lambda cell: cell.data,
    "defense": lambda cell: cell.defense.text,
    "removal": lambda cell: cell.removal,
}
MetricTexts = tuple[str, ...]  # the settings of each of a cell's metrics, as JSON
Words = Mapping[str, str]  # values by setting


def of(cells: Sequence[Cell], grids: Sequence[str] | None = None) -> tuple[list[Words], Words]:
    """Return for each cell the settings that tell it from others, and those that most cells have.

    These are settings in which cells of the same model, data sets and defense differ; those of a defense are given for
    these cells alone. Left out is what all cells with that attack have in common, where attacks differ, and what most
    cells have, where more than `labels.FEW` settings would be left.

    Args:
        cells: cells of a plan.
        grids: grids of each cell, where the table shows them; metrics are then compared only within a grid.
    """
    flat = {
        (name, key): _flat(name, section)
        for name, key_of in _SECTIONS.items()
        for key, section in {key_of(cell): cell.settings()[name] for cell in cells}.items()
    }
    alike: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        alike.setdefault(_group(cell), []).append(cell)
    varying = {group: _varying(of_group, flat) for group, of_group in alike.items()}
    everywhere = {path for paths in varying.values() for path in paths if not path.startswith("defense.")}
    short = labels.shorten(set().union(*varying.values()) - {_NAME})
    metrics = _metrics_of(cells, grids or [""] * len(cells))
    whole: list[dict[str, str]] = []  # by path
    for cell, of_cell in zip(cells, metrics, strict=True):
        values = _of_no_section(cell) | {
            path: value for name, key_of in _SECTIONS.items() for path, value in flat[name, key_of(cell)].items()
        }
        given = sorted((everywhere | varying[_group(cell)]) & set(values), key=_name_first)
        whole.append({path: labels.written(values[path]) for path in given} | of_cell)
    implied = _implied(whole)
    names = {path for words in whole for path in words if (words.get(_NAME), path, words[path]) not in implied}
    usual = _usual(whole, names) if len(names) > labels.FEW else {}

    def shown(path: str, value: str, attack: str | None) -> bool:
        return usual[path] != value if path in usual else (attack, path, value) not in implied

    found: list[Words] = [
        {short.get(path, path): value for path, value in words.items() if shown(path, value, words.get(_NAME))}
        for words in whole
    ]
    return found, {short.get(path, path): value for path, value in usual.items()}


def in_words(words: Words) -> str:
    """Return settings in a line; an attack's name stands alone."""
    return ", ".join(value if name == _NAME else f"{name}={value}" for name, value in words.items())


def condensed(found: Sequence[Words], usual: Words) -> tuple[list[str], list[str]]:
    """Return the line of each cell, and notes on what the lines leave out or stand for.

    Args:
        found: settings of each cell, as of `of`.
        usual: those that most cells have.
    """
    lists = Counter(words[_METRICS] for words in found if len(words.get(_METRICS, "")) > LONG)
    repeated = [text for text, number in lists.items() if number > 1]
    numbers = {text: f"[{number}]" for number, text in enumerate(repeated, start=1)}
    lines = [in_words({name: numbers.get(value, value) for name, value in words.items()}) for words in found]
    notes = [f"Left out where it is as in most cells: {in_words(usual)}"] if usual else []
    return lines, [*notes, *(f"{_METRICS}={number}: {text.replace('+', ' + ')}" for text, number in numbers.items())]


def _group(cell: Cell) -> tuple[str, ...]:
    return cell.model, cell.data.name, cell.removal.name, cell.defense.name


def _of_no_section(cell: Cell) -> dict[str, Any]:
    """Return the settings of a cell that stand in no section."""
    floor = f"{cell.asr_floor:g}"
    return {prompt_format.SETTING: prompt_format.name_of(cell.prompt_format), "asr_floor": floor}


def _varying(cells: Sequence[Cell], flat: Mapping[tuple[str, Hashable], Mapping[str, Any]]) -> set[str]:
    """Return the paths of settings in which cells differ."""
    varying = labels.varying(map(_of_no_section, cells))
    for name, key_of in _SECTIONS.items():
        varying |= labels.varying(flat[name, key] for key in {key_of(cell) for cell in cells})
    return varying


def _metrics_of(cells: Sequence[Cell], grids: Sequence[str]) -> list[dict[str, str]]:
    """Return which metrics each cell has that not all like it have: of the same group and grids."""
    lists: dict[tuple[Any, str], dict[MetricTexts, Sequence[Method]]] = {}
    for cell, grid in zip(cells, grids, strict=True):
        lists.setdefault((_group(cell), grid), {})[_texts(cell)] = cell.metrics
    named = {key: _metrics(each) for key, each in lists.items()}
    found = [named[_group(cell), grid] for cell, grid in zip(cells, grids, strict=True)]
    return [{_METRICS: each[_texts(cell)]} if each else {} for cell, each in zip(cells, found, strict=True)]


def _usual(found: Sequence[Words], paths: Iterable[str]) -> Words:
    """Return the values of these settings that most cells have; not of defenses, of which other cells show nothing."""
    counts: dict[str, Counter[str]] = {}
    for words in found:
        for path in words:
            counts.setdefault(path, Counter())[words[path]] += 1
    usual: dict[str, str] = {}
    for path in sorted(set(paths) - {_NAME}):
        value, number = counts[path].most_common(1)[0]
        if 2 * number > counts[path].total() and not path.startswith("defense."):
            usual[path] = value
    return usual


def _implied(found: Iterable[Words]) -> set[tuple[str | None, str, str]]:
    """Return (attack, path, value) of what all cells with an attack have in common, where attacks differ."""
    by_name: dict[str, list[Words]] = {}
    for words in found:
        if _NAME in words:
            by_name.setdefault(words[_NAME], []).append(words)
    return {
        (name, path, alike[0][path])
        for name, alike in by_name.items()
        for path in alike[0].keys() - labels.varying(alike) - {_NAME, _METRICS}
        if not path.startswith("defense.")
    }


def _flat(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a section by path, without those that follow from a published recipe."""
    values = dict(labels.flatten(section, f"{name}."))
    if section.get("recipe") == PUBLISHED:
        for path in published(registry.entry(f"{name}s", section["name"]).Config):
            values.pop(f"{name}.{path}", None)
    return values


def _texts(cell: Cell) -> MetricTexts:
    return tuple(metric.text for metric in cell.metrics)


def _metrics(lists: Mapping[MetricTexts, Sequence[Method]]) -> dict[MetricTexts, str]:
    """Return for each list of metrics those that not all lists have; nothing where the lists are the same."""
    texts = {key: {metric.text: metric for metric in metrics} for key, metrics in lists.items()}
    if len({tuple(sorted(each)) for each in texts.values()}) < 2:
        return {}
    common = set.intersection(*(set(each) for each in texts.values()))
    named: dict[str, dict[str, dict[str, Any]]] = {}  # settings of metrics by name and text
    for each in texts.values():
        for text in set(each) - common:
            named.setdefault(measured(each[text])[0], {})[text] = dict(labels.flatten(json.loads(text)))
    texts_of: dict[str, str] = {}
    for name, alike in named.items():
        varying = sorted(labels.varying(alike.values()))
        for text, values in alike.items():
            within = ", ".join(f"{path}={labels.written(values[path])}" for path in varying if path in values)
            texts_of[text] = f"{name}({within})" if within else name
    first = ["common"] if common else []
    return {
        key: "+".join([*first, *(texts_of[text] for text in each if text not in common)]) for key, each in texts.items()
    }


def _name_first(path: str) -> tuple[bool, str]:
    return path != _NAME, path
