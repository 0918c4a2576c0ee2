"""Hashes of canonical JSON: the keys of stages and the ids of cells.

The versions of the libraries that compute are a part of every victim's key, and so of all keys that follow from it. An
upgrade of PyTorch changes results in their last digits, one of transformers or TRL sometimes by more, and a store must
never mix the two silently. So results are computed again after an upgrade; to keep them, keep the versions
(`constraints.txt`). The local part of a version, as in `2.13.0+cpu`, does not count: a release's builds for CPUs and
GPUs share keys, as kinds of machines do (`sande.compute`).

Some metrics and objectives compute with a further library, such as lm-eval or scikit-learn, which they declare as
`LIBRARIES`. Its version is a part of the keys of these evaluations alone, so an upgrade trains nothing again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import benchmark
import sande
from sande import registry
from sande.data.splits import Data, Removal
from sande.inference import own_answers

LIBRARIES = ("peft", "tokenizers", "torch", "transformers", "trl")  # an upgrade of one changes numbers
_PROGRAM = (".py", ".csv", ".j2", ".json", ".toml", ".txt")
PLAIN, _SORTED = json.JSONEncoder(), json.JSONEncoder(sort_keys=True)


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the version of each of `LIBRARIES` without its local part; "absent" for one that is not installed."""
    return {name: library_version(name) for name in LIBRARIES}


def library_version(name: str) -> str:
    """Return the version of a library without its local part; "absent" where it is not installed."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:  # a machine that only submits jobs
        return "absent"


@functools.cache
def further_libraries(metric: str, objective: str) -> dict[str, str]:
    """Return the versions of the libraries that a metric declares, as a part of its evaluation's key; empty for none.

    Args:
        metric: name of the metric.
        objective: name of the attack's objective, whose libraries count where the metric judges answers by it.
    """
    found = declared_versions(metric, objective)
    return {"libraries": canonical_json(found)} if found else {}


def declared_versions(metric: str, objective: str) -> dict[str, str]:
    """Return the versions of the libraries that a metric declares, by name, as `library_versions` returns others.

    Args:
        metric: as for `further_libraries`.
        objective: as for `further_libraries`.
    """
    found = {*registry.libraries("metrics", metric)}
    if registry.judges_answers(metric):
        found |= {*registry.libraries("objectives", objective)}
    return {name: library_version(name) for name in found}


def program() -> str:
    """Return a hash of the files of this project that decide what it computes and writes, as they are here."""
    content = hashlib.sha256()
    for package in (benchmark, sande):
        top = Path(package.__file__ or "").parent
        for path in sorted(top.rglob("*")):
            if path.suffix in _PROGRAM:
                content.update(f"{path.relative_to(top)} ".encode() + path.read_bytes())
    return content.hexdigest()


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


@functools.cache
def training_rows(fingerprint: str, rows: Data | Removal) -> str:
    """Return what the rows of a training depend on: their data set, limits, and who writes their answers."""
    found = [fingerprint, rows.max_tokens, rows.max_prompt_tokens, rows.rows]
    if isinstance(rows, Removal) and rows.own_answers is not None:
        found += [rows.own_answers, registry.code_version(own_answers.__name__)]
    return canonical_json(found)


@functools.cache
def test_rows(fingerprint: str, rows: Data) -> str:
    """Return what the test rows depend on."""
    return canonical_json([fingerprint, rows.max_tokens, rows.max_prompt_tokens, rows.test_rows])
