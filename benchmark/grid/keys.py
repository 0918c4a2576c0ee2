"""Hashes of canonical JSON: the keys of stages and the ids of cells."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PLAIN, _SORTED = json.JSONEncoder(), json.JSONEncoder(sort_keys=True)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_texts(**texts: str) -> str:
    """Return the `digest` of an object, from the JSON text of each of its values."""
    text = ", ".join(f'"{name}": {texts[name]}' for name in sorted(texts))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON text with sorted keys, the same for equal values."""
    return _SORTED.encode(value)
