"""Grids that come with the program: in `benchmark/grids` of an installed wheel, in `grids/` of a checkout.

setup.py copies them into the wheel. An editable installation and a checkout use the files that one edits.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sande.errors import UserError

FOLDER = Path("grids")
_PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """Return the folder of shipped grids; of a checkout relative to the working folder, where it lies below that."""
    if (_PACKAGE / FOLDER).is_dir():
        return _PACKAGE / FOLDER
    checkout, here = _PACKAGE.parent / FOLDER, Path.cwd()
    return checkout.relative_to(here) if checkout.is_relative_to(here) else checkout


def grids() -> dict[str, Path]:
    """Return grid files by plain name: the shipped ones, then others in `grids/` of the working folder."""
    found = {path.stem: path for path in sorted(folder().glob("*.yaml"))}
    return found | {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in found}


def named(path: Path) -> Path:
    """Return the grid file of a plain name such as `quickstart`, else the path as it is."""
    return grids().get(str(path), path)


def of_name(name: str) -> tuple[str, Path]:
    """Return the plain name and the file of a grid; folder and suffix may stand with the name.

    Raises:
        UserError: there is no such grid; the message says which one may have been meant.
    """
    known, path = grids(), Path(name)
    stem = path.stem if path.suffix == ".yaml" else name
    if stem in known:
        return stem, known[stem]
    likely = near(path)
    hint = f"use {likely.stem}" if likely else "use one that 'sande-bench list grids' shows"
    raise UserError(f"no grid is called '{name}'; {hint}")


def stems(folder: Path) -> str:
    """Return the plain names of the YAML files in a folder, for a message."""
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"


def scales(folder: Path) -> str:
    """Return which scales a folder has or, where it has none, how to get some, for a message."""
    if any(folder.glob("*.yaml")):
        return f"there are: {stems(folder)} (files in {folder})"
    return f"there are none in {folder}; use 'sande-bench init GRID FOLDER', which copies them with a shipped grid"


def near(path: Path) -> Path | None:
    """Return the grid that most likely was meant by a path that is not there: the file with its suffix, or a name."""
    file = path.with_name(f"{path.name}.yaml") if path.name else path
    if os.path.isfile(file):  # unlike `Path.is_file`, it takes any name
        return file
    found = difflib.get_close_matches(path.stem, grids(), 1)
    return Path(found[0]) if found else None


def plain(path: Path) -> Path:
    """Return how a command names a grid file: relative to the working folder, or a shipped one by its plain name."""
    if path.is_absolute() and path.parent == folder():
        return Path(path.stem)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def copy(files: Sequence[Path], target: Path) -> list[Path]:
    """Copy a grid, with what it is made of, to a folder; keep what is there.

    Args:
        files: the grid first, then grids that it includes and scales, in folders below the grid's.
        target: folder, which is made.

    Returns:
        The files written.

    Raises:
        UserError: the grid is there already, or the folder cannot be written.
    """
    source = files[0].parent
    if (target / files[0].name).exists():
        raise UserError(f"{target / files[0].name} exists already; choose another folder, or remove it")
    written = []
    try:
        for file in files:
            place = target / file.relative_to(source)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
                written.append(place)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); choose another folder") from None
    return written
