"""Publish results: `sande-bench publish` copies them to a tracked folder, apart from those that runs write.

A folder of published results has a marker, `published.json`; everything below it is published, and no other command
writes there. The rows are copied unchanged from a run; pages, tables and figures are made from them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.io.files import write_atomically
from benchmark.records import erratum as errata
from benchmark.records import record
from benchmark.records.published import FOLDER, MARKER, is_published
from sande.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


_MARKED = '{"about": "The folders here are written by \'sande-bench publish\' alone."}\n'
# Files of a grid's results that are copied unchanged; all others are made from them.
_COPIED = ("rows.parquet", "outcomes.parquet", record.NAME, errata.NAME, "search.*", "detection.*", "scans")
# Pictures of single scans show what the tables of their pages say.
_LEFT_OUT = shutil.ignore_patterns("*.png", "*.svg", "*.lock")
BOARD = "board"  # folder of the leaderboard's pages for a browser
# Data sets whose licence forbids to pass their rows on under this project's own: their texts are not published.
_WITHHELD = ("alpaca", "dolly")
_MOST_NAMED = 3  # files or versions in a sentence


def publish(folder: Path, to: Path = FOLDER, *, replace: bool = False, erratum: str | None = None) -> Path:
    """Publish the results of a grid; of published ones, write the pages again from their rows.

    Args:
        folder: results of a grid.
        to: folder of published results, which gets a subfolder of the same name.
        replace: whether that may replace an existing one.
        erratum: of published results, what is wrong with them, which then opens all their pages; an empty text
            removes an earlier one, and None keeps it.

    Returns:
        The published folder.

    Raises:
        UserError: the results are incomplete, of the random model, or of an unknown version of the code; or the
            published folder exists, or cannot be written; or an erratum is of results that are not published.
    """
    from benchmark.records import files

    table, _ = files.read_results(folder)
    if is_published(folder):
        if erratum is not None:
            _writing(folder, lambda: errata.write(erratum, folder))
        _writing(folder, lambda: make_pages(folder, folder))
        return folder
    if erratum is not None:
        raise UserError(f"--erratum: {folder} is not published; publish it without, or mend it first")
    target = to / folder.resolve().name
    _check_rows(table, folder)
    _check_texts(table, folder)
    _check_scans(folder)
    _check_place(to)
    if target.exists() and not replace:
        raise UserError(f"{target} is published already; use --replace to replace it")
    _check_tree(folder)
    _writing(to, lambda: _replace(folder, target))
    return target


def make_pages(folder: Path, shown: Path) -> None:
    """Write everything in a published folder that follows from its rows: all pages, tables and figures, and the record.

    Args:
        folder: holds the rows; comparison, leaderboard and its pages for a browser are written only where they exist
            already, and the page of detectors where `detection.json` does.
        shown: path of the folder in the pages.
    """
    from benchmark.detection import evaluate, scan
    from benchmark.leaderboard import markdown as leaderboard
    from benchmark.leaderboard.write import write as write_leaderboard
    from benchmark.paper import comparison_page
    from benchmark.records import files
    from benchmark.report import page

    if record.read(folder) is None:
        (first,) = files.read_rows(folder).slice(0, 1).to_pylist()
        record.write(record.derived(first), folder)
    if (folder / f"{comparison_page.NAME}.md").is_file():
        comparison_page.write(folder)
    if (scans := folder / f"{evaluate.NAME}.json").is_file():
        evaluate.write(scans, folder, folder)  # rows name no model that has to be loaded
        for path in sorted(folder.glob("scans/*/scan.json")):
            scan.write_again(path.parent)
    board, pages = folder / leaderboard.NAME, folder / BOARD
    out = board if (board / f"{leaderboard.NAME}.md").is_file() else None
    html = pages if (pages / "index.html").is_file() else None
    if out or html:
        write_leaderboard([folder], out, html, named=[shown])
    page.write(folder)  # after the pages that it links to


def _check_rows(table: pa.Table, folder: Path) -> None:
    """Refuse rows that are not all measured, are of the random model, or have a stage that is not of a commit.

    Stages may be of several commits: a stage is kept only while its own code and settings stay the same, each row says
    which commit made its stages, and so does the page.
    """
    import pyarrow.compute as pc

    from benchmark.records import files, rehearsal, schema
    from benchmark.records import provenance as origins

    cells = len(table["cell"].unique())
    not_run = pc.equal(table["status"], schema.NOT_RUN)
    for rows, problem in ((files.of_failed_cells(table), "failed"), (not_run, "are unfinished")):
        if count := len(table["cell"].filter(rows).unique()):
            raise UserError(
                f"{folder}: {count} of {cells} cells {problem}; run its grid again, and publish it once all are done"
            )
    rehearsal.refuse_random(table, folder, "")
    of_stages = origins.by_stage(table, "code_version")
    for stage, versions in of_stages.items():
        for version in versions:
            _check_commit(version, f"{folder}: its {stage} are", "run its grid again with a new --store")
    if made := record.read(folder):
        what, fix = f"{folder}: its {record.NAME} is", "run its grid again, which computes nothing"
        _check_commit(made.code_version or origins.UNKNOWN, what, fix)


def _check_commit(version: str, what: str, fix: str) -> None:
    """Refuse code that is not one commit without changes."""
    from benchmark.execution import provenance

    if "+" not in version or version.endswith(provenance.DIRTY):
        raise UserError(f"{what} of the code {version}, which is not a commit; commit the changes, and {fix}")


def _check_texts(table: pa.Table, folder: Path) -> None:
    """Refuse rows of a data set that must not be passed on, which a case study would publish."""
    import pyarrow.compute as pc

    from benchmark.records.metrics import CASE_STUDY

    shown = set(table.filter(pc.equal(table["metric"], CASE_STUDY))["dataset"].unique().to_pylist())
    if found := sorted(shown & {*_WITHHELD}):
        raise UserError(
            f"{folder}: {CASE_STUDY} shows rows of {', '.join(found)}, whose licence differs; leave it out of the "
            "grid, or use another data set"
        )


def _check_scans(folder: Path) -> None:
    """Refuse an evaluation of detectors whose scans are not all of a known commit."""
    from benchmark.detection import evaluate

    path = folder / f"{evaluate.NAME}.json"
    if not path.is_file():
        return
    for version in dict.fromkeys(each.code_version or "unknown" for each in evaluate.read(path)[0]):
        _check_commit(version, f"{path}: its scans are", "scan again with a new --out")


def _check_place(to: Path) -> None:
    """Refuse a folder with other files, which would all count as published."""
    if to.is_dir() and any(to.iterdir()) and not is_published(to):
        raise UserError(f"--to {to}: the folder holds other files than published results; choose a new one")


def _check_tree(folder: Path) -> None:
    """Refuse while the code differs from its commit."""
    from benchmark.execution import provenance

    changed = provenance.changed_files()
    if changed is None:
        raise UserError(f"{folder}: this program runs outside a git checkout; use a checkout to publish results")
    if changed:
        raise UserError(f"{folder}: the checkout has changes ({_named(changed)}); commit them, and publish again")


def _replace(folder: Path, target: Path) -> None:
    """Make the published folder in a temporary place, move it to its own as a whole, and remove an older one."""
    from benchmark.leaderboard import markdown as leaderboard
    from benchmark.paper import comparison_page

    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_published(target.parent):
        write_atomically(target.parent / MARKER, _MARKED)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        for path in sorted(path for pattern in _COPIED for path in folder.glob(pattern)):
            if path.is_dir():
                shutil.copytree(path, new / path.name, ignore=_LEFT_OUT)
            else:
                shutil.copyfile(path, new / path.name)
        pages = f"{comparison_page.NAME}.md", f"{leaderboard.NAME}/{leaderboard.NAME}.md", f"{BOARD}/index.html"
        for name in pages:
            if (folder / name).is_file():  # `make_pages` writes pages that exist
                (new / name).parent.mkdir(exist_ok=True)
                (new / name).touch()
        make_pages(new, target)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _writing(place: Path, work: Callable[[], Any]) -> None:
    """Do the work; raise UserError where the place cannot be written."""
    try:
        work()
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}); make the folder writable") from None


def _named(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
