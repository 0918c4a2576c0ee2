"""Format quantities for people."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(size: float) -> str:
    """Return a byte count in SI units."""
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}" if size < 999.5 * bytes_ else f"{size / bytes_:.0f} {unit}"
    return f"{size:.0f} bytes"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def joined(names: Sequence[str]) -> str:
    """Return names with commas between them, and "and" before the last one."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
