"""A grid of cells that were run before, to be run again: by `verify` for a submitted entry, by `repeat` for results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmark.grid import prompt_format
from benchmark.grid.cell import Cell
from benchmark.io import yaml
from benchmark.io.files import write_atomically
from benchmark.io.remote import is_uri
from benchmark.records import files, mark
from benchmark.store.remote import open_store
from sande.errors import UserError


def check_results(results: str, what: str) -> None:
    """Refuse `--results` elsewhere than on this machine, where the grid is to be written.

    Raises:
        UserError: it is a URI.
    """
    if is_uri(results):
        raise UserError(f"--results {results}: {what} writes its grid there; use a folder of this machine")


def check_store(store: str) -> None:
    """Refuse a place that a run would refuse as its store, before the run's grid is written; make no new store.

    Args:
        store: folder or URI.

    Raises:
        UserError: as `open_store`.
    """
    if not open_store(store, create=False).exists and not is_uri(store) and Path(store).exists():
        open_store(store)  # refuses a file, or a folder that holds other files


def write_grid(cells: Sequence[Cell], about: str, path: Path) -> None:
    """Write a grid of exactly these cells, in place of one that says the same of itself.

    Args:
        cells: at least one.
        about: what the grid is for.
        path: its file, in the folder of results.

    Raises:
        UserError: the folder cannot be written, or something else lies there.
    """
    files.check_writable(path.parent)
    mark.claim_file(path, lambda found: _about(found) == about, "--results")
    settings = [{prompt_format.SETTING: prompt_format.PAPER, **cell.settings()} for cell in cells]
    paths = list(settings[0])
    sweep = {", ".join(paths): [[values[name] for name in paths] for values in settings]}
    write_atomically(path, yaml.dump({"about": about, "sweep": sweep}))


def _about(path: Path) -> str | None:
    """Return what a grid says of itself; None where the file is none."""
    try:
        found = yaml.read_yaml(path, f"{path}: no such file")
    except UserError:
        return None
    return found.get("about") if isinstance(found, dict) else None
