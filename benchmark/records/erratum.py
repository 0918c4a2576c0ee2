"""The erratum of published results: a text in `erratum.txt` beside the rows, which opens every page made from them.

Published rows stay as they are when an error in what made them is found later; their pages then say so.
"""

from __future__ import annotations

from pathlib import Path

from benchmark.io.files import write_atomically
from benchmark.io.markdown import code, plain
from sande import bounds

NAME = "erratum.txt"


def write(text: str, folder: Path) -> None:
    """Write the erratum of a results folder; an empty text removes it.

    Args:
        text: what is wrong with the results, and what they still hold for; shown on one line.
        folder: of the results.
    """
    if text.strip():
        write_atomically(folder / NAME, " ".join(text.split()) + "\n")
    else:
        (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> str:
    """Return the erratum of a results folder on one line, an empty text without one."""
    path = folder / NAME
    return " ".join(bounds.read(path).decode(errors="replace").split()) if path.is_file() else ""


def lines(folder: Path, shown: str = "") -> list[str]:
    """Return the erratum as Markdown, with an empty line after it; nothing without one.

    Args:
        folder: of the results.
        shown: the folder's name, on a page of several folders.
    """
    text = read(folder)
    return [f"**Erratum{f' of {code(shown)}' if shown else ''}.** {plain(text)}", ""] if text else []
