"""Names of a grid's variants, so that no run replaces the results of another."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from benchmark.grid.cell import SEED, SEEDS
from benchmark.grid.keys import digest
from sande.errors import UserError

MOST_BYTES = 120  # of a grid's name
MOST_LETTERS = 100  # of a suffix; file systems take 255 bytes in all
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,+@=-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_.+@]+(-[A-Za-z0-9_.+@]+)*")


def check_name(path: Path) -> Path:
    """Return the path of a grid file whose stem can name a results folder.

    Raises:
        UserError: it cannot: `...yaml` would name the folder above the results.
    """
    stem = path.stem
    if not stem.isprintable() or stem.startswith(".") or len(stem.encode()) > MOST_BYTES:
        raise UserError(
            f"{path}: the name of a grid names its results, so it has 1 to {MOST_BYTES} printable characters and does "
            "not begin with a dot; choose another name"
        )
    return path


def suffix(settings: Iterable[tuple[str, Any]], only: Iterable[tuple[str, Any]]) -> str:
    """Return the suffix of a results folder for `--set` and `--only`; empty where they change no number.

    It depends on the order of the options only where the cells do. A hash is appended where the suffix had to be
    shortened, or a value has characters that a file name should not have.

    Args:
        settings: path and value of each `--set`.
        only: path and value of each `--only`.
    """
    sets: dict[str, str] = {}
    for path, value in settings:
        if path.split(".")[0] != "resources":
            sets.pop(path, None)  # the last value of a path counts, at its place in the order
            sets[path] = _text(value)
    if not _order_counts(sets):
        sets = dict(sorted(sets.items()))
    chosen: dict[str, set[str]] = {}
    for path, value in only:
        chosen.setdefault(path, set()).add(str(value))
    named = [(path, [value]) for path, value in sets.items()]
    named += [(f"only-{path}", sorted(values)) for path, values in sorted(chosen.items())]
    if not named:
        return ""
    made = "".join(f"--{path}={','.join(values)}" for path, values in named)
    plain = all(_PLAIN.fullmatch(text) for path, values in named for text in (path, *values))
    if plain and len(made) <= MOST_LETTERS:
        return made
    return f"{_UNSAFE.sub('-', made)[: MOST_LETTERS - 9].rstrip('-.')}-{digest(named)[:8]}"


def _order_counts(paths: Collection[str]) -> bool:
    """Return whether one of the paths sets another, or a part of it, so that the later of the two decides."""
    if SEED in paths and any(name in paths for name in SEEDS):
        return True
    return any(inner.startswith(f"{path}.") for path in paths for inner in paths)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
