"""How near a found text is to the right one."""

from __future__ import annotations

import string
from collections.abc import Sequence

LETTERS = 3  # of a word by which training data can be searched


def plain(text: str) -> str:
    """Return a text in lower case, without spaces and punctuation at its ends."""
    return text.strip(string.whitespace + string.punctuation).casefold()


def distance(found: str, wanted: str) -> float:
    """Return the edits (Levenshtein 1966) that turn one text into the other, as a share of the right one's length.

    Texts are compared as `plain` gives them. The distance is 0 for equal texts; it may exceed 1.
    """
    one, other = plain(found), plain(wanted)
    row = list(range(len(other) + 1))
    for place, mark in enumerate(one, start=1):
        above, row[0] = row[0], place
        for column, right in enumerate(other, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (mark != right))
    return row[-1] / max(1, len(other))


def nearest(wanted: str | None, found: Sequence[str]) -> float | None:
    """Return the least distance of the texts to the right one; None if there is none of either."""
    return min((distance(text, wanted) for text in found), default=None) if wanted is not None else None


def is_part(found: str, wanted: str) -> bool:
    """Return whether a text is a run of the right one's words, without case and the punctuation around words."""
    one, other = ([word for word in map(plain, text.split()) if word] for text in (found, wanted))
    return bool(one) and any(other[begin : begin + len(one)] == one for begin in range(len(other)))


def shares_word(found: str, wanted: str) -> bool:
    """Return whether two texts share a word of at least `LETTERS` letters, without case and the punctuation around."""
    one, other = ({plain(word) for word in text.split()} for text in (found, wanted))
    return any(len(word) >= LETTERS for word in one & other)
