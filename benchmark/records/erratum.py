"""The erratum of published results: a text in `erratum.txt` beside the rows, which opens every page made from them.

Published rows stay as they are when an error in what made them is found later; their pages then say so. In results
that were joined, the file has a paragraph for each erratum of the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    write_all([text], folder)


def write_all(texts: Iterable[str], folder: Path) -> None:
    """Write several errata of a results folder, which pages show one after the other; none removes the file."""
    if found := _stripped(texts):
        write_atomically(folder / NAME, "\n\n".join(found) + "\n")
    else:
        (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> str:
    """Return the erratum of a results folder on one line, an empty text without one."""
    return " ".join(read_all(folder))


def read_all(folder: Path) -> list[str]:
    """Return the errata of a results folder, each on one line."""
    path = folder / NAME
    return _stripped(re.split(r"\n\s*\n", bounds.read(path).decode(errors="replace"))) if path.is_file() else []


def lines(folder: Path, shown: str = "") -> list[str]:
    """Return the erratum as Markdown, with an empty line after it; nothing without one.

    Args:
        folder: of the results.
        shown: the folder's name, on a page of several folders.
    """
    text = read(folder)
    return [f"**Erratum{f' of {code(shown)}' if shown else ''}.** {plain(text)}", ""] if text else []


def _stripped(texts: Iterable[str]) -> list[str]:
    """Return each text on one line, without those that are blank."""
    return [line for text in texts if (line := " ".join(text.split()))]
