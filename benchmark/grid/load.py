"""A grid file: settings of a cell, and a sweep over some of them, expanded into cells.

sweep:
  attack.poison_rate: [0.01, 0.05]              # a path, and its values
  model, data.name: [[tiny, alpaca], …]         # several paths that change together
  defense.parrot_position: [2, 5]               # in those methods that have it; others appear once
  attack_seed: [0, 1, 2]                        # victims; `seed` sets attack_seed and defense_seed
  defense_seed: [0, 1]                          # removals of each victim
  attack: all                                   # every attack of the registry, see `benchmark.grid.wildcards`
rules: […]                                      # changes to the cells that match, see `benchmark.grid.rules`
scale: paper                                    # more rules, those of scales/paper.yaml next to the grid
search: {…}                                     # settings found by search for each cell, see `benchmark.grid.space`

A later place replaces the seeds of an earlier one: the sweep those of the grid, rules those of the sweep, `--set` all
of them. One place has either `seed` or the other two. A cell without a defense takes its attack seed as defense seed,
so it is there once for each victim.

A grid may instead be the union of others: `include: [paper_table_6, …]`. Its `sweep` goes over all of them, and
replaces what they sweep at the same paths.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark.grid import only as only_cells
from benchmark.grid import prompt_format, shipped, space, sweep, unmatched, variants, wildcards
from benchmark.grid.cell import DEFAULTS, SEED, SEEDS, Cell, Parser, with_both_seeds
from benchmark.grid.rules import METHODS, RESOURCES, Rule, as_mapping, as_name, assign, takes
from benchmark.grid.stage_resources import StageResources, rules_of
from benchmark.io import yaml
from sande.errors import UserError

SCALES = "scales"
_GRID_KEYS = ("about", "include", "resources", "rules", "scale", "search", "sweep")
_UNION_KEYS = ("about", "include", "resources", "rules", "scale", "sweep")
_SCALE_KEYS = ("about", "rules")
# Sections of the whole grid, not of a cell, and an example of `--set` for each.
_SHARED = {"resources": "resources.workers=2", "search": "search.trials=8"}
_SECTIONS = {  # and what each expects
    "sweep": "paths with lists of values",
    "resources": "settings as 'key: value'",
    "search": "settings as 'key: value'",
}
MOST_CELLS = 100_000  # of a grid; each takes a tenth of a millisecond, and kilobytes


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of one grid file, in the order of its sweep, and the resources of their stages.

    Attributes:
        name: name of the results folder: the file's stem, the scale where it is not the file's own, and what `--set`
            and `--only` change.
        about: description in the file.
        cells: cells to run.
        resources: resources of each stage.
        parts: by cell id, the grids that have the cell: this one, or those of its `include`.
        scale: name of the scale whose rules were applied; empty for none.
        search: search that is run before the cells.
        searched: by cell id, the level of knowledge by which a search found its settings (`benchmark.plan.searches`).
    """

    name: str
    about: str
    cells: tuple[Cell, ...]
    resources: StageResources
    parts: Mapping[str, tuple[str, ...]]
    scale: str
    search: space.Search | None = None
    searched: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """A grid file with cells of its own.

    Attributes:
        path: the file.
        values: its contents, with the sweeps of grids that include it.
        scale: name of the scale that holds for it.
        is_changed: whether such a sweep may have replaced values that its rules look for.
    """

    path: Path
    values: dict[str, Any]
    scale: str
    is_changed: bool = False


def load_grid(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = (), scale: str | None = None) -> Grid:
    """Read, expand, scale, override, filter and check a grid.

    Args:
        path: the YAML file, or a plain name as in `sande-bench list grids`; its stem names the grid.
        overrides: `path.to.field=value` (the value in YAML), applied to every cell, also to swept fields.
        only: `path=value`; keep the cells that have, at every path, one of the values given for it. Some cell of the
            grid has each value.
        scale: name of a file in `scales/` next to the grid, instead of the grid's own.

    Raises:
        UserError: the file or an option is wrong; the message names file, place and fix.
    """
    path, scale = variants.check_name(shipped.named(path)), scale or None
    values = _read(path)
    parts = _parts(path, values)
    own = sorted({part.scale for part in parts})
    if scale is not None:
        parts = [replace(part, scale=scale) for part in parts]
    elif len(own) > 1:
        raise UserError(f"{path}: its grids have different scales ({', '.join(own)}); give one as 'scale'")
    with _naming(path):
        assignments = [_assignment(text, "--set") for text in overrides]
        _refuse_whole(assignments)
        rules = rules_of(values)
        unmatched.refuse_mistyped(rules)
    scaling = _scale_rules(path, path.parent / SCALES, parts[0].scale)
    cells, stems = _union(path, parts, scaling, [pair for pair in assignments if _head(pair) not in _SHARED])
    rules += scaling
    with _naming(path):
        resources = StageResources(_shared(values, RESOURCES, []), rules, _shared({}, RESOURCES, assignments))
        search = space.parse(_shared(values, "search", assignments), cells)
        resources.check(cells)
        filters = [_assignment(text, "--only") for text in only]
        chosen = only_cells.matching(cells, filters)
    missed = [text for text, given in zip(only, filters, strict=True) if not only_cells.matching(cells, [given])]
    if missed or not chosen:
        raise UserError(f"{path}: no cell matches --only {' '.join(missed or only)}; see 'sande-bench plan {path}'")
    return Grid(
        name=(path.stem if scale is None or own == [scale] else f"{path.stem}-{scale}")
        + variants.suffix(assignments, filters),
        about=str(values.get("about", "")),
        cells=tuple(chosen),
        resources=resources,
        parts=stems,
        scale=parts[0].scale,
        search=search,
    )


def files(path: Path, scale: str | None = None, overrides: Sequence[str] = ()) -> list[Path]:
    """Return the files of a grid: its own, those that it includes, their scales, and templates in its folder.

    Args:
        path: as for `load_grid`.
        scale: as for `load_grid`.
        overrides: as for `load_grid`; they may name a template, too.

    Raises:
        UserError: a file is missing or cannot be read, or an override is not one.
    """
    path = shipped.named(path)
    parts = _parts(path, _read(path))
    scales = {scale} if scale else {part.scale for part in parts if part.scale}
    for name in scales:
        _scale_rules(path, path.parent / SCALES, name)
    grids = [*_included(path, set()), *(path.parent / SCALES / f"{name}.yaml" for name in sorted(scales))]
    naming = [*map(_read, grids), settings_of(text for text in overrides if _names_template(text))]
    templates = {file for values in naming for file in prompt_format.files(values, path.parent)}
    return [*grids, *sorted(templates)]


def _included(path: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the file, and all files of its `include`, which is checked, each once."""
    if path not in seen:
        seen.add(path)
        yield path
        for name in _read(path).get("include") or ():
            yield from _included(path.parent / f"{name}.yaml", seen)


def _names_template(override: str) -> bool:
    return _assignment(override, "--set")[0] == prompt_format.SETTING


def about(path: Path) -> str:
    """Return the description in a grid file."""
    return str(_read(path).get("about", ""))


def _read(path: Path) -> dict[str, Any]:
    meant = None if os.path.exists(path) else shipped.near(path)  # unlike `Path.exists`, it takes any name
    fix = f"{f'use {meant}; ' if meant else ''}'sande-bench list grids' shows the grids"
    values = yaml.read_yaml(path, f"{path}: no such grid file; {fix}")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings as 'key: value'; see grids/quickstart.yaml")
    return values


def _parts(
    path: Path, values: dict[str, Any], trail: tuple[str, ...] = (), known: dict[Path, list[_Part]] | None = None
) -> list[_Part]:
    """Return the grid itself, or all grids of its `include`, each once; the outermost scale that is given applies.

    `trail` has the grids that include it; `known` the parts of files that were read, as several may include one.
    """
    known = {} if known is None else known
    with _naming(path):
        _check_sections(values)
        sweep.refuse_twice(values.get("sweep") or {})
        scale, included = values.get("scale", ""), values.get("include")
        if not isinstance(scale, str):
            raise UserError(f"scale is {scale!r}, not the name of one")
        if included is None:
            _refuse_unknown(values, [*DEFAULTS, SEED, *_GRID_KEYS])
            return [_Part(path, values, scale)]
        own = sorted(str(key) for key in values if key not in _UNION_KEYS)
        if own:
            raise UserError(f"a grid with 'include' has no settings of its own; set '{own[0]}' in the included grids")
        if not isinstance(included, list) or not included or not all(isinstance(name, str) for name in included):
            raise UserError(f"include is {included!r}, not a list of names of grids in the same folder")
        for _ in sweep.axes(values.get("sweep") or {}):
            pass  # a mistake in it is one of this file
        trail = (*trail, path.stem)
        for name in included:
            if name in trail:
                raise UserError(f"circular include: {' -> '.join([*trail, name])}; remove one")
            if Path(name).name != name or not (path.parent / f"{name}.yaml").is_file():
                raise UserError(f"include: no grid '{name}' here; there are: {shipped.stems(path.parent)}")
    parts: dict[Path, _Part] = {}
    for name in included:
        file = path.parent / f"{name}.yaml"
        if file not in known:
            known[file] = _parts(file, _read(file), trail, known)
        for part in known[file]:
            if part.values.get("search"):
                raise UserError(f"{path}: include: '{part.path.stem}' has a search, so it runs alone; remove it")
            outer = values.get("sweep") or {}
            swept = sweep.over(part.values.get("sweep") or {}, outer)
            part = replace(
                part,
                values={**part.values, "sweep": swept},
                scale=scale or part.scale,
                is_changed=part.is_changed or bool(outer),
            )
            parts.setdefault(part.path, part)
    return list(parts.values())


def _union(
    path: Path, parts: list[_Part], scaling: list[Rule], overrides: list[tuple[str, Any]]
) -> tuple[list[Cell], dict[str, tuple[str, ...]]]:
    """Return the cells of all parts, equal ones once, and by cell id the parts that have it."""
    cells: dict[str, Cell] = {}
    stems: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    parser = Parser(path.parent)
    for part in parts:
        with _naming(part.path, part.scale):
            for cell in _cells(part, scaling, overrides, used, parser):
                # Rules and overrides can make cells equal: keep each once.
                cells.setdefault(cell.id, cell)
                if len(cells) > MOST_CELLS:
                    raise UserError(f"include: its grids have more than {MOST_CELLS} cells; run them one by one")
                if part.path.stem not in stems.get(cell.id, ()):
                    stems[cell.id] = (*stems.get(cell.id, ()), part.path.stem)
    unused = [given for given, _ in overrides if given not in used]
    if unused:
        kind = min(unused).split(".")[0]
        raise UserError(
            f"{path}: --set {min(unused)}: no {kind} of this grid has that setting; see 'sande-bench show {kind}s NAME'"
        )
    return list(cells.values()), stems


def _cells(
    part: _Part, scaling: list[Rule], overrides: list[tuple[str, Any]], used: set[str], parser: Parser
) -> Iterator[Cell]:
    """Yield the cells of one file in the order of its sweep; add to `used` the overrides that some cell takes."""
    values = part.values
    base = with_both_seeds({key: value for key, value in values.items() if key in DEFAULTS or key == SEED})
    for key in METHODS:
        base[key] = as_mapping(base.get(key, DEFAULTS[key]))
        if as_name(base[key]) == wildcards.ALL:
            raise UserError(f"{key}: '{wildcards.ALL}' is a word of a sweep; set '{key}: {wildcards.ALL}' in 'sweep'")
    own = rules_of(values)
    waiting = unmatched.Unmatched([] if part.is_changed else own)
    idle: set[str] = set()
    swept: set[str] = set()
    axes = list(sweep.axes(values.get("sweep") or {}))
    if math.prod(map(len, axes)) > MOST_CELLS:
        raise UserError(f"sweep: its axes make more than {MOST_CELLS} cells; use fewer values, or several grids")
    for assignments in itertools.product(*axes):
        nested = dict(base)  # `assign` copies the sections that it changes
        # A swept method replaces all its settings, so it is assigned before fields that are swept inside it.
        for path, value in sorted(itertools.chain(*assignments), key=lambda pair: pair[0].count(".")):
            if takes(nested, path):
                assign(nested, path, value)
                swept.add(path)
            else:
                idle.add(path)
        given = dict(nested)
        for rule in own:
            waiting.look(rule, nested)
            rule.apply(nested, given)
        for rule in scaling:
            rule.apply(nested, given)
        for path, value in overrides:
            if takes(nested, path):
                for each in SEEDS if path == SEED else (path,):
                    assign(nested, each, value)
                used.add(path)
        yield parser.cell(nested)
    waiting.refuse()
    if idle - swept:
        path = min(idle - swept)
        kind = path.split(".")[0]
        raise UserError(f"sweep: no {kind} of this grid has the setting '{path}'; see 'sande-bench show {kind}s NAME'")


def _scale_rules(grid: Path, folder: Path, name: str) -> list[Rule]:
    if not name:
        return []
    path = folder / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        raise UserError(f"{grid}: no scale is called '{name}'; {shipped.scales(folder)}")
    values = _read(path)
    with _naming(path):
        _refuse_unknown(values, _SCALE_KEYS)
        return rules_of(values)


def _shared(values: dict[str, Any], key: str, overrides: list[tuple[str, Any]]) -> Any:
    shared = {key: values.get(key) or {}}
    for path, value in overrides:
        if path.startswith(f"{key}."):
            assign(shared, path, value)
    return shared[key]


def _refuse_whole(overrides: list[tuple[str, Any]]) -> None:
    """Raise UserError where `--set` names a whole section of the grid in place of one of its fields."""
    whole = next((path for path, _ in overrides if path in _SHARED), None)
    if whole:
        raise UserError(f"--set {whole}=…: set one field, as in {_SHARED[whole]}")


def _head(override: tuple[str, Any]) -> str:
    return override[0].split(".")[0]


def _check_sections(values: Mapping[str, Any]) -> None:
    """Raise UserError where a section is given and is not a mapping, such as `false` or an empty list."""
    for key, expected in _SECTIONS.items():
        given = values.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"{key}: expected {expected}, got {given!r}")


def _refuse_unknown(values: Mapping[Any, Any], valid: Iterable[str]) -> None:
    unknown = sorted(str(key) for key in values if key not in set(valid))
    if unknown:
        raise UserError(f"unknown setting '{unknown[0]}'; valid settings: {', '.join(sorted(valid))}")


@contextmanager
def _naming(path: Path, scale: str = "") -> Iterator[None]:
    """Prefix the errors of the block with the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}{f' at scale {scale}' if scale else ''}: {error}") from None


def settings_of(assignments: Iterable[str], values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return nested settings: `values`, changed by each assignment `path.to.field=value` of `--set`."""
    nested = dict(values or {})
    for text in assignments:
        assign(nested, *_assignment(text, "--set"))
    return nested


def _assignment(text: str, option: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise UserError(f"{option} '{text}': expected path.to.field=value")
    return path.strip(), yaml.parse(value, f"{option} '{text}'")
