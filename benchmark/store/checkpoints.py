"""Checkpoints of a stage that is running: in the folder of a store, and, where the store is remote, sent there too.

STORE/checkpoints/<kind>/<key>/              written by the stage, see `sande.training.checkpoints`
URI/checkpoints/<kind>/<key>/latest.json     of a remote store: which snapshot of that folder is whole
URI/checkpoints/<kind>/<key>/<snapshot>/     its files

A stage writes a checkpoint every `resources.checkpoint_minutes`, and each is sent while the training goes on. A
snapshot is made of hard links, which takes no time; a thread sends it. Where the thread is still busy, the newest
snapshot waits and replaces the one that waited before. What cannot be sent is a warning: the stage goes on.

Of several workers each restores on its own machine, where it may find more or less than the others do. All then begin
from what rank 0 finds: `sande.training.checkpoints` brings it to the machines that lack it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmark.io.files import alone
from benchmark.io.remote import Remote
from sande.errors import UserError
from sande.permissions import share

LATEST = "latest.json"
PATIENCE = 10.0  # seconds for which the end of a stage waits for its last snapshot


class Kept:
    """Checkpoints of a stage on a disk that its next process sees, too.

    Attributes:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path, like: Path) -> None:
        """Take the folder, and the folder of the store, whose users may continue the stage."""
        self.folder, self._like = folder, like

    def restore(self) -> None:
        """Bring what another machine left into the folder."""

    def saved(self) -> None:
        """Take note of a new checkpoint or finished training."""
        for above in (self.folder.parent.parent, self.folder.parent):
            share(above, self._like, deep=False)
        share(self.folder, self._like)

    def close(self, done: bool) -> None:
        """End; where the stage is done, remove its checkpoints."""
        if done:
            shutil.rmtree(self.folder, ignore_errors=True)


class Sent(Kept):
    """The same, and sent to a remote store."""

    def __init__(
        self,
        folder: Path,
        like: Path,
        remote: Remote,
        below: str,
        scratch: Callable[[str], Path],
        say: Callable[[str], None],
    ) -> None:
        """Take the remote store, the place in it, how to make a scratch folder, and who receives warnings."""
        super().__init__(folder, like)
        self._remote, self._below, self._scratch, self._say = remote, below, scratch, say
        self._next: Path | None = None  # the snapshot that waits
        self._end: bool | None = None  # whether the stage is done, once it has ended
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def restore(self) -> None:
        """Fetch the snapshot there if it has come further than the folder here."""
        from sande.training.checkpoints import seconds_kept

        try:
            content = self._remote.read(f"{self._below}/{LATEST}")
            if content is None:
                return
            latest = json.loads(content)
            snapshot, seconds = str(latest["snapshot"]), float(latest["seconds"])
            with alone(self._like / ".checkpoints.lock"):  # one worker of a machine fetches for all of them
                if seconds > seconds_kept(self.folder):
                    self._fetch(snapshot)
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            self._say(f"the checkpoint in the store cannot be used, the stage begins here ({_reason(error)})")

    def _fetch(self, snapshot: str) -> None:
        below, work = f"{self._below}/{snapshot}", self._scratch("restore")
        try:
            self._remote.fetch(self._remote.sizes(below), work, below)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            work.rename(self.folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def saved(self) -> None:
        """Make a snapshot and let the thread send it."""
        super().saved()
        work: Path | None = None
        try:
            work = self._scratch("snapshot")
            for path in self.folder.rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    to = work / path.relative_to(self.folder)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    _link(path, to)
        except (OSError, UserError) as error:
            self._say(f"a checkpoint is not sent to the store ({_reason(error)})")
            if work:
                shutil.rmtree(work, ignore_errors=True)
            return
        with self._changed:
            waited, self._next = self._next, work
            self._changed.notify()
        if waited:
            shutil.rmtree(waited, ignore_errors=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, name="checkpoints", daemon=True)
            self._thread.start()

    def close(self, done: bool) -> None:
        """End; where the stage is done, remove its checkpoints here and there. Wait for the thread only for a while."""
        super().close(done)
        with self._changed:
            self._end = done
            self._changed.notify()
        if self._thread:
            self._thread.join(PATIENCE)  # after that it ends by itself, or with its process
        elif done:
            self._remove()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._end is not None)
                work, self._next = self._next, None
                ended = self._end
            if work:
                if not ended:  # a stage that is done needs none; one that failed is repeated from this one
                    self._send(work)
                shutil.rmtree(work, ignore_errors=True)
            elif ended is not None:
                if ended:
                    self._remove()
                return

    def _send(self, work: Path) -> None:
        from sande.training.checkpoints import seconds_kept

        snapshot = uuid.uuid4().hex
        try:
            names = [str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()]
            self._remote.send(names, work, f"{self._below}/{snapshot}")
            known = {"snapshot": snapshot, "seconds": seconds_kept(work)}
            self._remote.write(f"{self._below}/{LATEST}", json.dumps(known).encode())
            for other in self._remote.names(self._below):
                if other not in (LATEST, snapshot):
                    self._remote.remove(f"{self._below}/{other}")
        except Exception as error:  # a warning, whatever it is: the training goes on
            self._say(f"a checkpoint could not be sent to the store ({_reason(error)}); the next one is tried")

    def _remove(self) -> None:
        with suppress(OSError, UserError):  # then the next run clears it
            self._remote.delete(f"{self._below}/{LATEST}")
            self._remote.remove(self._below)


def clear(remote: Remote, is_done: Callable[[str, str], bool]) -> None:
    """Remove the checkpoints of finished stages from a remote store."""
    for kind in remote.names("checkpoints"):
        for key in remote.names(f"checkpoints/{kind}"):
            if is_done(kind, key):
                remote.remove(f"checkpoints/{kind}/{key}")


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(path, to)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
