"""What the commands import and hash, once, in the process of which every case of `bad_input` is a fork.

It is then taken out of the sight of the garbage collector, which in each fork would touch, and so copy, all of it.
"""

import gc
import importlib
import pkgutil

from sande import registry

HEAVY = ("benchmark.execution.driver", "sande.models.loading", "transformers.models.auto")


def modules() -> list[str]:
    """Return the modules of the command line and what they import, and of all methods."""
    found = [f"benchmark.{name}" for name in ("cli", "clean", "detection", "grid", "leaderboard", "plan", "records")]
    found += [f"sande.{kind}" for kind in registry.KINDS]
    names = ["benchmark.pipeline", *HEAVY]
    for package in found:
        path = importlib.import_module(package).__path__
        names += [f"{package}.{module.name}" for module in pkgutil.iter_modules(path) if module.name != "__main__"]
    return names


for name in modules():
    importlib.import_module(name)
    if name.startswith("sande."):  # by module, since what is installed, as `registry.names` keeps it, a case may change
        registry.code_version(name)
gc.collect()
gc.freeze()
