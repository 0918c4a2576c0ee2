"""A folder of results, local or remote."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

import pyarrow.compute as pc

from benchmark.grid import shipped
from benchmark.io.remote import Remote, cache, is_uri
from benchmark.records import files, mark, record
from sande.errors import UserError

OUTCOMES = "outcomes.parquet"
VERDICT = ".verdict.json"  # how the file of a verdict on an entry ends
PARTIAL = "unfinished"  # subfolder of a complete report, for the rows of a later run that was interrupted
ROWS = "rows.parquet"


class ResultsFolder:
    """The results folder of a grid: a local folder, which is sent to the remote one where results are remote.

    Attributes:
        shown: path or URI as the user gave it.
        folder: local folder.
    """

    def __init__(self, place: str) -> None:
        self.shown = place.rstrip("/") or place
        self._remote = Remote(place) if is_uri(place) else None
        self._marks: dict[str, set[str]] = {}
        self.folder = cache(self.shown, "results") if self._remote else Path(place)

    def check_writable(self) -> None:
        """Write a file into the remote folder, so that a refusal does not come after hours of work.

        Raises:
            UserError: it cannot be written, or a run would replace files of others there.
        """
        if self._remote:
            try:
                self._check_files(self._remote)
                self._remote.write(".writable", b"")
                self._remote.delete(".writable")
            except FileNotFoundError:
                raise UserError(f"{self.shown} cannot be written: no such bucket; create the bucket first") from None

    def fetch(self) -> Path:
        """Return the local folder, with the files of the remote one and no others."""
        if self._remote:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._remote.fetch(self._remote.sizes(), self.folder)
        return self.folder

    def send(self) -> None:
        """Update the remote folder: send rows.parquet last, and remove files of the suite that are not here."""
        if self._remote:
            files = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
            names = [str(path.relative_to(self.folder)) for path in files]
            before = set(self._remote.sizes())
            for name in set(filter(self._is_replaced, before)) - set(names):
                self._remote.delete(name)
            self._remote.send([name for name in names if name != ROWS], self.folder)
            self._remote.send([name for name in names if name == ROWS], self.folder)
            for below in ("", f"{PARTIAL}/"):
                own = {name.removeprefix(below) for name in set(names) - before if name.startswith(below)}
                own = {name for name in own if below or not name.startswith(f"{PARTIAL}/")}
                if own := own | mark.listed(self.folder / below):
                    self._marks[below] = self._listed(below) | own
                    self._remote.write(f"{below}{mark.MARK}", mark.write(self._marks[below]).encode())

    def _check_files(self, remote: Remote) -> None:
        """Refuse a remote folder where a run would replace files of others."""
        names, known = set(remote.sizes()), self._listed("")
        if not known and ROWS in names:  # of a version without a mark
            return
        patterns = [*mark.RESULTS.keys, *([] if known else mark.RESULTS.others)]
        for name in sorted(names - known):
            if any(fnmatch(name, pattern) for pattern in patterns):
                raise UserError(
                    f"{self.shown}: {name} is not a file that sande-bench wrote, and would be replaced; choose another "
                    "--results"
                )

    def _is_replaced(self, name: str) -> bool:
        """Return whether a remote file is one that each run writes again or removes."""
        below = f"{PARTIAL}/" if name.startswith(f"{PARTIAL}/") else ""
        own, known = name.removeprefix(below), self._listed(below)
        if own == mark.MARK:
            return bool(below)
        if own in mark.RESULTS.keys:
            return bool(below) and (own in known or not known)
        return own in known if known else bool(re.fullmatch(mark.RESULTS.earlier, own))

    def _listed(self, below: str) -> set[str]:
        """Return the names in the mark of the remote folder, or of one in it."""
        if below not in self._marks:
            content = self._remote.read(f"{below}{mark.MARK}") if self._remote else None
            self._marks[below] = mark.parse((content or b"").decode(errors="replace"))
        return self._marks[below]


@contextmanager
def local_copies(places: Sequence[str]) -> Iterator[list[Path]]:
    """Yield the local paths of results and entries; fetch rows, outcomes, records and entries of those that are URIs.

    Raises:
        UserError: what the block raises, with the places as they were given; or one cannot be fetched.
    """
    paths = [_fetched(place) if is_uri(place) else Path(place) for place in places]
    try:
        yield paths
    except UserError as error:
        text = str(error)
        for place, path in zip(places, paths, strict=True):
            text = text.replace(str(path), place) if is_uri(place) else text
        raise UserError(text) from None


def refuse_other(place: str, grid: Path, cells: Collection[str]) -> None:
    """Refuse a folder with complete results of another grid of the same name, which a run would replace.

    A grid that was edited is still the same file; one that was moved or copied shares cells with its results.

    Args:
        place: folder or URI of the results.
        grid: file that is to be run, or a plain name.
        cells: ids of its cells.

    Raises:
        UserError: the folder holds results of another file, and none of these cells.
    """
    made = record.read(_copied(place, record.NAME))
    before = _grid_of(made.command) if made and made.complete else None
    if before is None or os.path.realpath(before) == os.path.realpath(shipped.named(grid)):  # takes links in a circle
        return
    try:
        there = pc.unique(files.read_rows(_copied(place, ROWS))["cell"]).to_pylist()
    except UserError:  # there are none, or they are damaged
        return
    if not set(cells).intersection(there):
        raise UserError(
            f"{place}: holds results of another grid, {before}; set another --results, rename {grid}, or remove "
            f"{place}/{ROWS} to replace them"
        )


def _grid_of(command: str) -> Path | None:
    """Return the grid file in the command of a run; None where there is none."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    return shipped.named(Path(words[2])) if words[:2] == ["sande-bench", "run"] and len(words) > 2 else None


def _copied(place: str, name: str) -> Path:
    """Return the folder that holds a file of a results folder, as far as it is there."""
    return _fetched(place, [name]) if is_uri(place) else Path(place)


def _fetched(place: str, names: Sequence[str] = (ROWS, OUTCOMES, record.NAME)) -> Path:
    """Fetch what describes a remote results folder, or a remote entry with its verdict, as far as it is there."""
    remote = Remote(place)
    above, _, name = remote.uri.rpartition("/")
    below = remote
    if is_file := name.endswith((".json", ".parquet")):
        names, below = [name, f"{name.rpartition('.')[0]}{VERDICT}"], Remote(above)
    # Not the folder in which a run of this grid works.
    folder = cache(below.uri, "read")
    folder.mkdir(parents=True, exist_ok=True)
    for each in names:
        (folder / each).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            below.fetch([each], folder)
    return folder / name if is_file else folder
