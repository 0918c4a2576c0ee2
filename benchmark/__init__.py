"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated.

The functions of `benchmark.api` are attributes of the package: `benchmark.run(...)`. They are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Both set variables that libraries read on import: OpenMP below PyTorch, and Ray. Every import of a module of this
# package runs these lines first, so no other module has to see to it.
import sande as sande
from benchmark import ray_env as ray_env

if TYPE_CHECKING:
    from benchmark.api import Finished, results, run

__all__ = ["Finished", "results", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("benchmark.api"), name)
    raise AttributeError(f"module 'benchmark' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
