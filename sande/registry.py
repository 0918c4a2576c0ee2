"""A file in `attacks/`, `defenses/`, `metrics/` or `detectors/` is an entry; the file's name is its key.

Importing an entry must not import torch (entries import it inside their functions), so that listing, showing and
planning stay quick. `code_version` gives what an entry's result depends on in the code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import sande
from sande import types
from sande.config import configure
from sande.errors import UserError

KINDS = ("attacks", "defenses", "metrics", "detectors")
_ROOT = Path(sande.__file__).parent


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Keys of all entries of a kind, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(_ROOT / kind)])))


def entry(kind: str, name: str) -> ModuleType:
    """The module of one entry.

    Raises:
        UserError: no entry has that name; the message lists those there are.
    """
    if name not in names(kind):
        raise UserError(f"no {kind.removesuffix('s')} is called '{name}'; there are: {', '.join(names(kind))}")
    return importlib.import_module(f"sande.{kind}.{name}")


def config(kind: str, name: str, values: Mapping[str, Any]) -> Any:
    """The entry's `Config`: its defaults, overridden by `values`."""
    return configure(entry(kind, name).Config, values, f"{kind.removesuffix('s')} {name}")


def knowledge(defense: str) -> type[types.Knowledge]:
    """What the defense may know: the type that its `defend` declares for `data`."""
    declared = entry("defenses", defense).defend.__annotations__["data"]
    known: type[types.Knowledge] = getattr(types, declared) if isinstance(declared, str) else declared
    return known


def summary(module: ModuleType) -> str:
    """First line of an entry's docstring."""
    return (module.__doc__ or "").strip().split("\n")[0]


@functools.cache
def code_version(module: str) -> str:
    """Hash of a `sande` module and of all `sande` modules it imports, anywhere in the file.

    Comments, docstrings and layout do not count, so that mending a sentence does not retrain a victim, and changing a
    line of code always does. Nothing is imported: the files are read.
    """
    digest = hashlib.sha256()
    for name in sorted(_imports(module)):
        digest.update(f"{name}\n{_bare_code(name)}\n".encode())
    return digest.hexdigest()[:16]


def _imports(module: str) -> set[str]:
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        pending += [dotted for dotted in _imported(name) if dotted.startswith("sande.") and _path(dotted)]
    return found


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _path(module: str) -> Path | None:
    base = _ROOT.joinpath(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    if path is None:
        raise LookupError(f"no module {module} below {_ROOT}")
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _bare_code(module: str) -> str:
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):  # noqa: SIM102
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
