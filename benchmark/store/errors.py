"""Errors of a store: damaged, unreadable, read-only or removed, each as a sentence."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.io.files import raise_if_disk_full
from sande.errors import UserError

# Where this user may not write, and where something else is in the place of a folder or file.
_REFUSED = (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)


# The problem of an artifact in a remote store, to which the manifest is sent last. It is not damaged: another run may
# be sending it, and a run that makes it again sends all its files.
UNFINISHED = "its upload is not finished"


class DamagedError(UserError):
    """An artifact is not as its stage left it."""


class UnreadableError(UserError):
    """This user may not read an artifact, which may be in order."""


class GoneError(UserError):
    """The store of a run was removed meanwhile."""


def gone(location: object) -> GoneError:
    """Return the error of a run whose store was removed meanwhile."""
    return GoneError(f"store {location} was removed while it was used; restore it, or run again to compute all of it")


def dropped(kind: str, key: str) -> DamagedError:
    """Return the error of a stage whose model another run dropped meanwhile, see `benchmark.plan.retention`."""
    return DamagedError(f"{kind} {key[:8]} was removed by another run; run again to recompute it")


def unwritable(root: Path, error: OSError) -> UserError:
    """Return the error of a store that cannot be written."""
    place = f"{error.filename}: " if error.filename and str(error.filename) != str(root) else ""
    return UserError(
        f"store {root} cannot be written ({place}{error.strerror}); check its owner and permissions, or choose another "
        "--store"
    )


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Raise an `UnreadableError` where the block reads what this user may not.

    Raises:
        UnreadableError: so it is.
    """
    try:
        yield
    except PermissionError as error:
        raise UnreadableError(
            f"{error.filename or root}: this user may not read it ({error.strerror}); have its owner run "
            f"'chmod -R a+rX {shlex.quote(str(root))}', or choose another --store"
        ) from None


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Raise a `UserError` where the block cannot write into a store.

    Raises:
        UserError: this user may not, the file system is read-only, a file is in the place of a folder, or no space is
            left.
    """
    try:
        with raise_if_disk_full(root):
            yield
    except OSError as error:
        if not isinstance(error, _REFUSED) and error.errno != errno.EROFS:
            raise
        raise unwritable(root, error) from None


def quarantine_message(kind: str, key: str, problem: str, moved_to: object) -> str:
    """Return the clause that reports a damaged artifact, moved to `moved_to` or already gone (None)."""
    where = f", and quarantined as {moved_to}" if moved_to else ""
    return f"{kind} {key[:8]} in the store is damaged ({problem}){where}"
