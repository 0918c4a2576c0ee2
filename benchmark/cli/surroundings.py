"""Work in any surroundings: an ASCII locale, a full standard output, a removed working folder, any MPLBACKEND."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

from sande.errors import UserError


def prepare() -> None:
    """Let streams write any character, as an escape where their encoding lacks it, and forget Matplotlib's backend.

    Raises:
        UserError: the working folder is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.pop("MPLBACKEND", None)  # figures are files; an unknown name there stops the import
    try:
        os.getcwd()
    except OSError:
        raise UserError("the working folder was removed; use 'cd' to a folder that exists") from None


def is_full(error: OSError) -> bool:
    """Return whether the error is of a standard output that takes nothing more."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def give_up_output() -> None:
    """Send what is still to be printed nowhere, so that the end of the process does not try again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(code: int) -> NoReturn:
    """End this process at once, once all output is written."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def sentence(error: OSError | UnicodeError) -> str:
    """Return an error of the operating system as a sentence for the user."""
    if isinstance(error, UnicodeError):
        return "a name or value is not UTF-8 text; use names and values in UTF-8"
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return f"standard output: it cannot be written ({reason}); use another one"
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{place}: {reason}; choose another path"
