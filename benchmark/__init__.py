"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated.

The functions of `benchmark.api` are attributes of the package: `benchmark.run(...)`. They are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Both set variables that libraries read when they are loaded: OpenMP below PyTorch, and Ray.
import sande as sande
from benchmark.execution import ray_env as ray_env

if TYPE_CHECKING:
    from benchmark.api import results, run
    from benchmark.pipeline import Finished


__all__ = ["Finished", "results", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("benchmark.api"), name)
    raise AttributeError(f"module 'benchmark' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
