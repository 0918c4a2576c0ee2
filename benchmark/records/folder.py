"""A folder of results, local or remote."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmark.io.remote import Remote, cache, is_uri
from sande.errors import UserError


class ResultsFolder:
    """The results folder of a grid: a local folder, which is sent to the remote one where results are remote.

    Attributes:
        shown: path or URI as the user gave it.
        folder: local folder.
    """

    _OURS = ("tables/", "figures/", "unfinished/")  # folders that each run writes again, or removes

    def __init__(self, place: str) -> None:
        self.shown = place.rstrip("/") or place
        self._remote = Remote(place) if is_uri(place) else None
        self.folder = cache(self.shown, "results") if self._remote else Path(place)

    def check_writable(self) -> None:
        """Write a file into the remote folder, so that a refusal does not come after hours of work.

        Raises:
            UserError: it cannot be written.
        """
        if self._remote:
            try:
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
        """Update the remote folder: send rows.parquet last, and remove tables and figures that are not here."""
        if self._remote:
            files = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
            names = [str(path.relative_to(self.folder)) for path in files]
            self._remote.send([name for name in names if name != "rows.parquet"], self.folder)
            self._remote.send([name for name in names if name == "rows.parquet"], self.folder)
            for name in set(self._remote.sizes()) - set(names):
                if name.startswith(self._OURS):
                    self._remote.delete(name)
