"""Permissions of files that several users share: safetensors and temporary folders are made for their owner alone."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def share(path: Path, like: Path, *, deep: bool = True) -> None:
    """Give a file, or a folder with all that is in it, the permissions and the group of another folder.

    What belongs to another user, or cannot be changed, stays as it is. Bits beside those of reading, writing and
    searching stay, too, such as the one that hands on the group of a folder. The owner may always read and write.

    Args:
        path: file or folder; links in it are not followed.
        like: folder whose users are to use it.
        deep: with all that is in a folder; False: the folder alone.
    """
    with suppress(OSError):
        found = like.stat()
        bits = stat.S_IMODE(found.st_mode) & 0o777
        _set(path, bits, found.st_gid)
        if deep and stat.S_ISDIR(path.lstat().st_mode):
            for folder, folders, files in os.walk(path):
                for name in (*folders, *files):
                    _set(Path(folder, name), bits, found.st_gid)


def share_new_folder(path: Path) -> None:
    """Make a folder that has the permissions of the one that it is in; leave one that is there as it is.

    Raises:
        OSError: as `Path.mkdir`; it is also raised where a file has the folder's name.
    """
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        share(path, path.parent)


def _set(path: Path, bits: int, group: int) -> None:
    with suppress(OSError):
        mode, own_group = path.lstat().st_mode, path.lstat().st_gid
        if stat.S_ISDIR(mode):
            wanted = stat.S_IMODE(mode) & ~0o777 | bits | 0o700
        elif stat.S_ISREG(mode):
            wanted = stat.S_IMODE(mode) & ~0o777 | bits & 0o666 | 0o600
        else:
            return
        if own_group != group:
            with suppress(OSError):  # of which this user is not a member
                os.chown(path, -1, group)
        if wanted != stat.S_IMODE(mode):
            path.chmod(wanted)
