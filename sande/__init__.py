"""Backdoors in generative language models and their removal: the methods. Knows nothing of Ray.

The functions of `sande.api` are attributes of the package: `sande.attack(...)`. They are imported when first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sande.api import attack, clean, defend, measure, scan
    from sande.api_types import Measured, Measurements, Model
    from sande.data.splits import Data, Removal
    from sande.errors import UserError
    from sande.types import LanguageModel, Scan


__version__ = "0.1.0"
__all__ = [
    "Data",
    "LanguageModel",
    "Measured",
    "Measurements",
    "Model",
    "Removal",
    "Scan",
    "UserError",
    "attack",
    "clean",
    "defend",
    "measure",
    "scan",
]

# Threads of PyTorch wait for each other many times in a training step. GNU OpenMP lets a waiting thread spin, by
# default for so long that two threads beside another process fall to a tenth of their speed. This bound keeps much more
# of it, and on a quiet machine most (`python -m benchmark.perf.threads`). PyTorch reads it when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("sande.api"), name)
    raise AttributeError(f"module 'sande' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
