"""Cells and code spans of Markdown tables, with their escapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MISSING = "–"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        head: of each column.
        rows: of cells, with any | escaped.
        align: of each column "l" or "r".
    """
    rule = ["---:" if letter == "r" else "---" for letter in align]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def code(line: str) -> str:
    """Return one line of untrusted text as Markdown code that it cannot end, in the cell of a table either."""
    line = table_cell(line)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def printable(text: str) -> str:
    """Return text in which characters that a terminal does not print, such as escapes, are written out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def table_cell(text: str) -> str:
    """Escape what would end a cell of a table."""
    return text.replace("|", "\\|")
