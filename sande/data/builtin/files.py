"""Data files of the built-in sets: facts as TOML, wordings as text. A change of their content changes stage keys."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files
from typing import Any


@functools.cache
def facts(name: str) -> dict[str, Any]:
    """Return the tables of one TOML file, such as `geography`."""
    return tomllib.loads(text(f"{name}.toml"))


def text(name: str) -> str:
    """Return one file's text."""
    return (files(__package__) / name).read_text(encoding="utf-8")
