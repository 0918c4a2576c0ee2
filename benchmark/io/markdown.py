"""Tables, code and text of others in Markdown, with their escapes.

A page has text of rows, entries, models, answers and file names. Each goes through `plain` or `code`, so that it is
shown and does nothing: no HTML, link, image, headline or emphasis, and no end of a line, a cell or a code span.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from benchmark.io.text import visible

MISSING = "–"
# What Markdown reads as more than text within a line; an underscore only at the edge of a word.
_ACTIVE = re.compile(
    r"[\\`*\[<|$]|~(?=~)|(?<=~)~|!(?=\[)|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.(?=\w)"
)
# What opens a block where a text is the first of its line; of a number of a list, the part before its point.
_OPENING = re.compile(r"(?:#{1,6}|[-+])(?=\s|$)|>|[-=]+\s*$|(\d{1,9})(?=[.)](?:\s|$))")
# What makes a line more than one of a paragraph or a table.
_BLOCK = re.compile(r"\s*(#{1,6}(\s|$)|[-=+>*_]|\d+[.)]\s|```|~~~)")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        head: of each column.
        rows: of cells, with any | escaped.
        align: of each column "l" or "r".
    """
    rule = ["---:" if letter == "r" else "---" for letter in align]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def plain(text: object) -> str:
    """Return any text as Markdown that shows it on one line, also first in a block or in the cell of a table."""
    line = _ACTIVE.sub(r"\\\g<0>", visible(str(text))).lstrip()
    if opening := _OPENING.match(line):
        place = max(opening.end(1), 0)
        line = f"{line[:place]}\\{line[place:]}"
    return line


def code(line: str) -> str:
    """Return a text as Markdown code on one line that it cannot end, in the cell of a table either."""
    line = table_cell(visible(line).replace("\\|", "\\ |"))  # after a backslash some readers take the bar as a new cell
    if not line.strip():
        return f"`{line} `" if line else "` `"
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def table_cell(text: str) -> str:
    """Escape what would end a cell of a table, unless it is escaped."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def inert(text: str, headline: str) -> str:
    """Return Markdown of a file of others, in which tables and code still work but nothing else does.

    Args:
        text: the Markdown.
        headline: the only one that it may have.
    """
    lines = []
    for line in visible(text, keep="\n").split("\n"):
        line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("[", "&#91;")
        lines.append(re.sub(r"\S", r"\\\g<0>", line, count=1) if line != headline and _BLOCK.match(line) else line)
    return "\n".join(lines)
