"""`sande-bench export`: a cell's model as others can load it, with a model card that holds the cell's numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmark import clean_report, keeping
from benchmark.cell import NO_DEFENSE, Cell
from benchmark.files import room, write_atomically
from benchmark.rows import FAILED, NOT_RUN
from benchmark.store_protocol import Store
from sande.errors import UserError


@dataclass(frozen=True, slots=True)
class Found:
    """A cell and its rows, one a measurement."""

    cell: Cell
    rows: tuple[dict[str, Any], ...]


def find(name: str, results: Path) -> Found:
    """Return the cell of a name, or of the beginning of one, in the rows of any grid.

    Raises:
        UserError: there is none, or several, or it failed or was not run to its end.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*/rows.parquet")):
        # Equal cells of several grids have equal rows.
        rows = [row for row in pq.read_table(path).to_pylist() if name and row["cell"].startswith(name)]
        for cell in {row["cell"] for row in rows}:
            if cell not in found or _is_unfinished(found[cell]):
                found[cell] = [row for row in rows if row["cell"] == cell]
    if not found:
        raise UserError(f"no cell '{name}' in {results}/*/rows.parquet; 'sande-bench plan GRID' shows those of a grid")
    if len(found) > 1:
        raise UserError(f"'{name}' begins the names of {len(found)} cells: {', '.join(sorted(found))}; give more of it")
    ((cell, rows),) = found.items()
    if any(row["status"] == FAILED for row in rows):
        raise UserError(f"cell {cell} failed ({rows[0]['error']}), so there is no model; run its grid again")
    if _is_unfinished(rows):
        raise UserError(f"cell {cell} is not measured to its end, as its run was interrupted; run its grid again")
    return Found(Cell.parse(json.loads(rows[0]["settings"])), tuple(rows))


def _is_unfinished(rows: list[dict[str, Any]]) -> bool:
    return any(row["status"] == NOT_RUN for row in rows)


def write(found: Found, store: Store, out: Path) -> None:
    """Copy the cell's model into a new folder, and write its card beside it.

    Raises:
        UserError: the model is not in the store, was dropped or is damaged, or `out` cannot be written.
    """
    cell = found.cell
    kind, key = ("attack" if cell.defense.name == NO_DEFENSE else "defend"), cell.defense_key
    if not store.has(kind, key):
        if keeping.dropped(store, [key]):
            place = store.path(keeping.DROPPED, key)
            raise UserError(
                f"the model of cell {cell.id} was dropped; remove {place} and run its grid with --keep-models all"
            )
        raise UserError(
            f"the model of cell {cell.id} is not in store {store.root} (it may be of another version of the code); "
            "run its grid again, with --keep-models all"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose a new folder")
    source = store.read(kind, key)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            with room(out.parent):
                shutil.copytree(source, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
                write_atomically(work / "README.md", card(found))
            work.chmod(0o755)  # of a temporary folder nobody else may read anything
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None


def card(found: Found) -> str:
    """The model card, in Markdown."""
    cell, row = found.cell, found.rows[0]
    is_victim = cell.defense.name == NO_DEFENSE
    method = cell.attack.name if is_victim else cell.defense.name
    kind = "backdoored" if is_victim else "backdoor-removal"
    return clean_report.load("export_card.md").render(
        front_matter=clean_report.front_matter(cell.content.model, [kind, "sande-bench", method]),
        identity=cell.content.model,
        victim=is_victim,
        backdoor=cell.attack.config.backdoor,
        row=row,
        measured=[
            {**one, "own": {"value": one["value"], "low": one["ci_low"], "high": one["ci_high"]}} for one in found.rows
        ],
        settings=cell.settings(),
    )


def check_repository(name: str) -> str:
    """A repository's name, if it is one.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push '{name}' is no name of a repository; write ORG/NAME")
    return name


def push(folder: Path, repository: str) -> str:
    """Upload a folder to the Hub, into a repository that is made private where it is new. Returns the commit's address.

    Raises:
        UserError: nobody is logged in, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=True, library_name="sande-bench")
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        done = hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="sande-bench export")
    except LocalTokenNotFoundError:
        raise UserError("nobody is logged in to the Hub; run 'hf auth login', or set HF_TOKEN") from None
    except Exception as error:  # of whichever library carries its requests: that differs between releases
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder} was not pushed to {repository} ({reason}); it is complete here") from None
    return str(done.commit_url)
