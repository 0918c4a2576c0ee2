"""Export a cell's model in a form that other programs load, with a model card: `sande-bench export`."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.export.card import front_matter, load
from benchmark.grid.cell import NO_DEFENSE, Cell
from benchmark.io.files import raise_if_disk_full, write_atomically
from benchmark.plan import retention
from benchmark.records import checks, erratum
from benchmark.records.files import is_failed, read_file
from benchmark.records.schema import ATTACK_FAILED, NOT_RUN
from benchmark.report import certificates
from benchmark.store.local import DROPPED
from benchmark.store.protocol import Store
from sande import registry
from sande.errors import UserError


@dataclass(frozen=True, slots=True)
class Found:
    """A cell and its rows, one per measurement, with the erratum of the results that they are from."""

    cell: Cell
    rows: tuple[dict[str, Any], ...]
    erratum: str = ""


def find_model(name: str, results: Path) -> Found:
    """Return the cell with a name, or whose name begins so, from the rows of any grid.

    Raises:
        UserError: there is no such cell, or several, or it failed or is not finished; or rows are damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, Path] = {}
    damaged: list[str] = []
    for path in sorted(results.glob("*/rows.parquet")):
        # Equal cells of several grids have equal rows.
        try:
            table = read_file(path)
        except UserError as error:  # of another grid perhaps
            damaged.append(str(error))
            continue
        chosen = table.filter(pc.starts_with(table["cell"].cast(pa.string()), name)) if name else table.slice(0, 0)
        rows = checks.listed(chosen, path)
        for cell in {row["cell"] for row in rows}:
            if cell not in found or _is_unfinished(found[cell]):
                found[cell] = [row for row in rows if row["cell"] == cell]
                folders[cell] = path.parent
    if not found and damaged:
        raise UserError(damaged[0])
    if not found:
        raise UserError(
            f"{results}/*/rows.parquet: no measured cell '{name}'; use 'sande-bench run GRID' to run its grid first, "
            "or choose another --results"
        )
    if len(found) > 1:
        raise UserError(f"cell '{name}': {len(found)} names begin so ({', '.join(sorted(found))}); use a longer one")
    ((cell, rows),) = found.items()
    if failed := next(filter(is_failed, rows), None):
        raise UserError(f"cell {cell}: it failed ({failed['error']}), so there is no model; run its grid again")
    if _is_unfinished(rows):
        raise UserError(f"cell {cell}: it is not finished, as its run was interrupted; run its grid again")
    return Found(Cell.parse(json.loads(rows[0]["settings"])), tuple(rows), erratum.read(folders[cell]))


def _is_unfinished(rows: list[dict[str, Any]]) -> bool:
    return any(row["status"] == NOT_RUN for row in rows)


def write(found: Found, store: Store, out: Path) -> None:
    """Copy the cell's model into a new folder, with a model card.

    Raises:
        UserError: the store lacks the model, dropped it or has it damaged, or `out` cannot be written.
    """
    cell = found.cell
    kind, key = ("attack" if cell.defense.name == NO_DEFENSE else "defend"), cell.defense_key
    if not store.has(kind, key):
        if retention.dropped(store, [key]):
            place = store.path(DROPPED, key)
            raise UserError(
                f"cell {cell.id}: its model was dropped; remove {place} and run its grid with --keep-models all"
            )
        raise UserError(
            f"cell {cell.id}: its model is not in store {store.root} (it may be of another version of the code); "
            "run its grid again with --keep-models all"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: it exists already; choose a new folder")
    source = store.read(kind, key)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            with raise_if_disk_full(out.parent):
                _copy(source, work)
                write_atomically(work / "README.md", card(found))
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: the folder cannot be written ({error.strerror}); choose another folder") from None


def _copy(source: Path, to: Path) -> None:
    """Copy a model into a folder, and make it one that all can read and its owner can write, whatever the store's is.

    A temporary folder is readable by its owner alone, and one copied from a read-only store could not be removed.
    """
    try:
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    finally:
        for folder in (to, *(path for path in to.rglob("*") if path.is_dir())):
            folder.chmod(0o755)


def card(found: Found) -> str:
    """Return the model card as Markdown."""
    cell, row = found.cell, found.rows[0]
    is_victim = cell.defense.name == NO_DEFENSE
    method = cell.attack.name if is_victim else cell.defense.name
    kind = "backdoored" if is_victim else "backdoor-removal"
    return load("benchmark.export", "export_card.md").render(
        front_matter=front_matter(cell.content.model, [kind, "sande-bench", method]),
        identity=cell.content.model,
        victim=is_victim,
        backdoor=cell.attack.config.backdoor,
        row=row,
        weak=_weak(found.rows),
        measured=[
            {**one, "own": {"value": one["value"], "low": one["ci_low"], "high": one["ci_high"]}}
            for one in found.rows
            if one["value"] is not None
        ],
        unscored=[one for one in found.rows if one["value"] is None],
        erratum=found.erratum,
        certificate=certificates.sentence(json.loads(row["certificate"])) if row["certificate"] else "",
        settings=cell.settings(),
    )


def _weak(rows: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """Return the measurement by which the attack missed its floor, and its value for the victim; None if it did not.

    Where that measurement is not there, it is the ASR, as in `benchmark.records.rows`.
    """
    if not any(row["status"] == ATTACK_FAILED for row in rows):
        return None
    shown = registry.shown_by(rows[0]["attack"])
    values = [row["victim_value"] for row in rows if row["metric"] == shown and row["victim_value"] is not None]
    return (shown, values[0]) if values else ("asr", rows[0]["victim_asr"])


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        UserError: it is not one.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push '{name}': not the name of a repository; use ORG/NAME")
    return name


def push(folder: Path, repository: str) -> str:
    """Upload a folder to a repository of the Hub, which is private if it is new; return the commit's address.

    Raises:
        UserError: no user is logged in, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=True, library_name="sande-bench")
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        done = hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="sande-bench export")
    except LocalTokenNotFoundError:
        raise UserError("--push: no user is logged in to the Hub; use 'hf auth login', or set HF_TOKEN") from None
    except Exception as error:  # of any library: releases differ in the one that sends requests
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--push {repository}: the upload failed ({reason}); {folder} is complete, push it again"
        ) from None
    return str(done.commit_url)
