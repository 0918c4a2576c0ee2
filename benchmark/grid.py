"""A grid file: settings of a cell, and a sweep over some of them, expanded into cells.

sweep:
  attack.poison_rate: [0.01, 0.05]              # a path, and its values
  "model, data.name": [[tiny, alpaca], …]       # several paths that change together
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmark.cell import DEFAULTS, Cell, Resources
from sande import registry
from sande.config import configure, describe
from sande.errors import UserError

METHOD_PATHS = ("attack", "defense")
FOLDER = Path("grids")
_GRID_KEYS = ("about", "resources", "sweep")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-4` is a number (PyYAML follows YAML 1.1, where it is text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of one grid file, in the order of its sweep, and what a stage may use.

    `every` holds also the cells that `--only` leaves out: they are not run, but keep their rows where they are done.
    """

    name: str
    about: str
    cells: tuple[Cell, ...]
    every: tuple[Cell, ...]
    resources: Resources


def load(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Grid:
    """Read, override, expand, filter and check a grid.

    Args:
        path: the YAML file, or the name of one in `grids/`; its stem names the grid.
        overrides: `path.to.field=value` (the value in YAML), applied to every cell, also to swept fields.
        only: `path=value`; cells that match every path in one of the values given for it are kept.

    Raises:
        UserError: one sentence with the file, the place, and what would do.
    """
    path = named(path)
    values = _read(path)
    try:
        resources, cells = _cells(values, [_assignment(text, "--set") for text in overrides])
        chosen = _matching(cells, only)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not chosen:
        raise UserError(f"{path}: no cell matches --only {' '.join(only)}; see 'sande-bench plan {path}'")
    return Grid(path.stem, str(values.get("about", "")), tuple(chosen), tuple(cells), resources)


def named(path: Path) -> Path:
    """The grid file that a bare name such as `quickstart` stands for, else the path as it is."""
    known = FOLDER / f"{path}.yaml"
    return known if not path.exists() and path.name == str(path) and known.is_file() else path


def about(path: Path) -> str:
    """What a grid file says of itself."""
    return str(_read(path).get("about", ""))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise UserError(f"no grid file {path}; 'sande-bench list grids' shows those there are") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); check the file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise UserError(f"{path}{line}: not YAML ({problem}); mend it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings as 'key: value'; see grids/quickstart.yaml")
    return values


def _cells(values: dict[str, Any], overrides: list[tuple[str, Any]]) -> tuple[Resources, list[Cell]]:
    valid = sorted([*DEFAULTS, *_GRID_KEYS])
    unknown = sorted(str(key) for key in values if key not in valid)
    if unknown:
        raise UserError(f"unknown setting '{unknown[0]}'; valid settings: {', '.join(valid)}")
    base = {key: copy.deepcopy(value) for key, value in values.items() if key in DEFAULTS}
    shared = {"resources": copy.deepcopy(values.get("resources") or {})}
    for key in METHOD_PATHS:
        base[key] = _as_mapping(base.get(key, DEFAULTS[key]))
    expanded: dict[str, Cell] = {}
    unused = {path for path, _ in overrides}
    for assignments in itertools.product(*_axes(values.get("sweep") or {})):
        nested = copy.deepcopy(base)
        # A swept method replaces the whole of it, so it comes before what is swept inside it.
        for path, value in sorted(itertools.chain(*assignments), key=lambda pair: pair[0].count(".")):
            _assign(nested, path, value)
        for path, value in overrides:
            if path.startswith("resources."):
                _assign(shared, path, value)
            elif _takes(nested, path):
                _assign(nested, path, value)
            else:
                continue
            unused.discard(path)
        cell = Cell.parse(nested)
        expanded[cell.id] = cell  # an override of a swept field makes cells equal: each is kept once
    if unused:
        kind = min(unused).split(".")[0]
        raise UserError(
            f"--set {min(unused)}: no {kind} of this grid has that setting; see 'sande-bench show {kind}s NAME'"
        )
    return configure(Resources, shared["resources"], "resources"), list(expanded.values())


def _axes(sweep: Any) -> Iterable[list[list[tuple[str, Any]]]]:
    """For each axis its points, each a list of (path, value)."""
    if not isinstance(sweep, Mapping):
        raise UserError(f"sweep: expected paths with lists of values, got {sweep!r}")
    for key, points in sweep.items():
        paths = [path.strip() for path in str(key).split(",")]
        if not isinstance(points, list) or not points:
            raise UserError(f"sweep: '{key}' needs a list of at least one value, got {points!r}")
        axis = []
        for point in points:
            together = [point] if len(paths) == 1 else point
            if not isinstance(together, list) or len(together) != len(paths):
                raise UserError(
                    f"sweep: '{key}' sets {len(paths)} fields, so each point is a list of as many: {point!r}"
                )
            axis.append(list(zip(paths, together, strict=True)))
        yield axis


def _assign(nested: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    inner = nested
    for part in parents:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            raise UserError(
                f"'{path}' cannot be set, since '{part}' holds {inner!r}; give settings under 'name:' instead"
            )
    inner[last] = _as_mapping(copy.deepcopy(value)) if path in METHOD_PATHS else copy.deepcopy(value)


def _takes(nested: dict[str, Any], path: str) -> bool:
    """Whether the cell's method has the setting; what one defense is told need not make sense for the next."""
    key, _, setting = path.partition(".")
    method = nested.get(key)
    if key not in METHOD_PATHS or not setting or not isinstance(method, Mapping):
        return True
    fields = [field.path for field in describe(registry.entry(f"{key}s", str(method.get("name"))).Config)]
    return any(f"{field}.".startswith(f"{setting}.") for field in ["name", *fields])


def _as_mapping(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _assignment(text: str, option: str) -> tuple[str, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise UserError(f"{option} '{text}': expected path.to.field=value")
    try:
        return path.strip(), yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise UserError(f"{option} '{text}': the value is not YAML; quote it") from None


def _matching(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    wanted: dict[str, list[str]] = {}
    for text in only:
        path, value = _assignment(text, "--only")
        wanted.setdefault(path, []).append(str(value))
    for path in wanted:
        if all(_at(cell, path) is None for cell in cells):
            valid = ", ".join(sorted([*DEFAULTS, "setting"]))
            raise UserError(f"--only {path}: no cell has that field; give a path that begins with one of: {valid}")
    return [cell for cell in cells if all(_at(cell, path) in values for path, values in wanted.items())]


def _at(cell: Cell, path: str) -> str | None:
    """The cell's value at a path as text, of a method its name; None where its method has no such setting."""
    if path == "setting":
        return cell.setting
    inner: Any = cell.settings()
    for part in path.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return None
        inner = inner[part]
    return str(inner["name"] if isinstance(inner, dict) and "name" in inner else inner)
