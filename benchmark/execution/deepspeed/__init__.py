"""DeepSpeed's configurations, one JSON file each, and how `resources` choose among them.

What says "auto" follows from a training's settings. Precision and optimizer are the Trainer's, see
`sande.training.sharding`. Nothing is prefetched: under ZeRO-3 DeepSpeed would guess by the last pass, and a pass need
not be like the last.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmark.grid.resources import TENSOR, Resources
from sande.training.sharding import Sharding


def sharding(resources: Resources) -> Sharding:
    """Return how trainings with these resources are spread over their workers."""
    if resources.sharding in ("none", TENSOR):
        return Sharding(recompute=resources.recompute)
    name = resources.sharding + ("_offload" if resources.offload else "")
    configuration = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    return Sharding(configuration, resources.recompute)
