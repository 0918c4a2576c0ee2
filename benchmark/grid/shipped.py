"""Grids that come with the program: in `benchmark/grids` of an installed wheel, in `grids/` of a checkout.

setup.py copies them into the wheel. An editable installation and a checkout use the files that one edits.
"""

from __future__ import annotations

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
