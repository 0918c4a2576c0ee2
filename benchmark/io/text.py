"""Show text of others: what a terminal or a reader would not see as itself is written as an escape."""

from __future__ import annotations

import unicodedata

# Control, format and half characters, and the separators of lines and paragraphs: they move the cursor, set a title,
# reverse the order of words, or cannot be written as UTF-8. The other categories are shown.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # part of words and of emoji


def visible(text: str, keep: str = "") -> str:
    r"""Return a text with every control character, bidirectional mark and half character as an escape like `\x1b`.

    Args:
        text: of anyone.
        keep: characters that stay, such as a line break.
    """
    if text.isprintable():
        return text
    if "\n" in keep:  # most lines are printable, and need no look at each character
        rest = keep.replace("\n", "")
        return "\n".join(visible(line, rest) for line in text.split("\n"))
    return "".join(char if char in keep or not _is_hidden(char) else _escape(char) for char in text)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN and char not in _JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
