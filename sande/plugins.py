"""Load a plug-in's module and check that it has what its kind needs. Its code is anyone's, so it may do anything."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sande.config import configure, describe
from sande.declarations import MetricInfo
from sande.errors import UserError

FUNCTIONS = {
    "attacks": ("attack", "trigger", "near_miss", "moved", "plant"),
    "defenses": ("defend",),
    "metrics": ("names", "reads", "measure"),
    "detectors": ("scan",),
    "objectives": ("answer", "opening", "judge"),
}
"""Functions that a module of each kind must have, see `sande.protocols`."""


@functools.cache
def load(kind: str, name: str, dotted: str) -> ModuleType:
    """Import a plug-in's module.

    Args:
        kind: of the entry, such as `defenses`.
        name: of the entry.
        dotted: name of the module.

    Raises:
        UserError: it cannot be imported, or lacks what its kind needs.
    """
    what = f"{kind.removesuffix('s')} '{name}': its module {dotted}"
    module: ModuleType = _called(what, "cannot be imported", lambda: importlib.import_module(dotted))
    if problem := _called(what, "fails", lambda: _problem(kind, module)):
        raise UserError(f"{what} {problem}, see sande/protocols.py")
    return module


def _called(what: str, problem: str, call: Callable[[], Any]) -> Any:
    """Return what a call returns; a plug-in may raise anything, `sys.exit` included."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{what} {problem} ({type(error).__name__}: {error}); repair or uninstall it") from None


def _settings_problem(module: ModuleType) -> str | None:
    """Return what is wrong with the module's settings, if anything."""
    if not hasattr(module, "Config"):
        return "has no Config; add one"
    made = module.Config
    if not (isinstance(made, type) and dataclasses.is_dataclass(made) and hasattr(made, "__pydantic_fields__")):
        return "has a Config that is not a class of settings; use sande.config.configuration"
    configure(made, {}, "Config")
    list(describe(made))
    return None


def _problem(kind: str, module: ModuleType) -> str | None:
    """Return what the module lacks, and what to do, if anything."""
    if problem := _settings_problem(module):
        return problem
    for function in FUNCTIONS[kind]:
        if not callable(getattr(module, function, None)):
            return f"has no function '{function}'; add it"
    if kind != "metrics":
        return None
    made = module.Config
    declared = getattr(module, "MEASURES", ())
    if not isinstance(declared, tuple) or not all(isinstance(one, MetricInfo) for one in declared):
        return "has MEASURES that are not a tuple of MetricInfo; use sande.declarations.MetricInfo"
    for function in ("names", "reads"):
        found = getattr(module, function)(made())
        if not isinstance(found, tuple) or not all(isinstance(one, str) for one in found):
            return f"has a function '{function}' that returns {found!r}; return a tuple of names"
    return None
