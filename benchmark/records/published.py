"""The folder of published results, which a run never writes."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.io.remote import is_uri
from sande.errors import UserError

FOLDER = Path("results/published")
MARKER = "published.json"


def is_published(place: str | Path) -> bool:
    """Return whether a path of this machine is a folder of published results, or lies in one."""
    if is_uri(place):
        return False
    path = Path(os.path.realpath(place))  # unlike `resolve`, it takes links in a circle
    return any((folder / MARKER).is_file() for folder in (path, *path.parents))


def refuse_published(place: str | Path, option: str = "") -> None:
    """Refuse to write into published results.

    Args:
        place: path that is to be written.
        option: option of the command line that gave it, if any.

    Raises:
        UserError: the place is published.
    """
    if is_published(place):
        if option:
            how = f"choose another {option}, and publish the results from there"
        else:
            how = f"use 'sande-bench publish {place}' to write its pages again, or a copy of the folder"
        raise UserError(f"{place}: only 'sande-bench publish' writes published results; {how}")
