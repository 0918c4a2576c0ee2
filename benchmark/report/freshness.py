"""Skip a report that is up to date: find whether a results folder already holds what a run would write.

STORE/reports/<hash of the folder>.json     hash of the inputs, hash of each file, and the texts that were printed

A folder is up to date only if every file is as the last run left it, and that run had the same cells, outcomes, code
and libraries. `sande-bench report` does not check this, and writes everything again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from benchmark.grid.keys import digest, program
from benchmark.grid.load import Grid
from benchmark.io.files import write_atomically
from benchmark.plan import retention
from benchmark.plan.plan import Plan
from benchmark.store.protocol import Store
from sande.errors import UserError
from sande.permissions import share, share_new_folder

_LIBRARIES = ("matplotlib", "numpy", "pyarrow", "scipy")  # which make rows, tables and figures
_FILES = ("rows.parquet", "outcomes.parquet", "run.json", "search.*", "README.md", "tables/*", "figures/*")


def fingerprint(grid: Grid, plan: Plan, store: Store, command: str = "") -> str:
    """Return a hash of everything that rows, tables and figures depend on.

    Args:
        grid: its names are in the rows.
        plan: plan of all cells that get rows, with all stages done.
        store: holds the manifests of the outcomes.
        command: command that the page names.
    """
    outcomes = hashlib.sha256()
    for stage in plan.stages.values():
        for key in stage.artifacts if stage.kind != "part" else ():  # of these, rows have what is in the defense's
            kind = retention.kind_of(store, stage.kind, key)
            outcomes.update((store.path(kind, key) / "manifest.json").read_bytes())
    return digest(
        [
            program(),
            [platform.python_version(), *map(version, _LIBRARIES)],
            [grid.name, grid.scale, [[c.id, grid.parts.get(c.id), grid.searched.get(c.id)] for c in plan.cells]],
            outcomes.hexdigest(),
            command,
        ]
    )


def cached_output(folder: Path, made_of: str, store: Store) -> list[str] | None:
    """Return the texts that the run printed that wrote the folder; None where the folder is not up to date."""
    try:
        note = json.loads(_place(folder, store).read_text(encoding="utf-8"))
        texts: list[str] = note["texts"]
        return texts if note["made_of"] == made_of and note["files"] == _files(folder) else None
    except (OSError, ValueError, KeyError, TypeError):  # none there, or damaged
        return None


def record(folder: Path, made_of: str, texts: Sequence[str], store: Store) -> None:
    """Store the hash of a folder's inputs and the printed texts; skip it where the store cannot be written."""
    place = _place(folder, store)
    with suppress(OSError, UserError):
        share_new_folder(place.parent)
        write_atomically(place, json.dumps({"made_of": made_of, "files": _files(folder), "texts": list(texts)}))
        share(place, place.parent)


def _place(folder: Path, store: Store) -> Path:
    return store.root / "reports" / f"{digest(str(folder.resolve()))[:16]}.json"


def _files(folder: Path) -> dict[str, str]:
    found = (path for pattern in _FILES for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
