"""Let a worker group of another size continue a training, and record the sizes.

Ray Train has a range for the number of workers, too (`ScalingConfig(num_workers=(4, 8))`). It is not used here: its
controller counts what other Ray Train groups hold and not what Tune's trials do, from a view of the nodes that is up to
20 seconds old, so a group would often wait for room that there is not, or start smaller than it could. The queue
(`benchmark.plan.schedule`) knows what is free; a group that lost a worker is a new Ray Train run of that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import distributed, nn

from sande.training.checkpoints import Checkpoints, Progress, agreed, rank

HISTORY = "worker_history"  # among the facts of a stage, which checkpoints keep


class ElasticCheckpoints(Checkpoints):
    """Checkpoints from which another number of workers resumes, too, unless each worker saved a shard."""

    def training(self, name: str, layout: str, facts: dict[str, Any]) -> Progress:
        """Return the progress of the stage's next training, see `Checkpoints.training`."""
        plain = super().training(name, layout, facts)
        return _Progress(self, plain.folder.parent, layout, facts)


class _Progress(Progress):
    def __init__(self, checkpoints: Checkpoints, path: Path, layout: str, facts: dict[str, Any]) -> None:
        super().__init__(checkpoints, path, layout, facts)
        self._name, self._record = path.name, facts

    def latest(self, model: nn.Module) -> str | None:
        own, self.folder = self.folder, self._newest(model)
        try:
            found = super().latest(model)
        finally:
            self.folder = own
        self._note(_step(Path(found)) if found else 0)
        return found

    def _newest(self, model: nn.Module) -> Path:
        """Return the folder, of any number of workers, with the checkpoint that came furthest."""
        _, _, rest = self.folder.name.partition("-workers")
        if "-zero" in rest:
            return self.folder
        number = 0
        if rank() == 0:
            marks = self.folder.parent.glob(f"*-workers{rest}/checkpoint-*/complete.json")
            furthest = max((mark.parent for mark in marks), key=_step, default=None)
            number = int(furthest.parent.name.partition("-")[0]) if furthest else 0
        number = agreed(number, model)
        return self.folder.with_name(f"{number}-workers{rest}") if number else self.folder

    def _note(self, step: int) -> None:
        workers = distributed.get_world_size() if distributed.is_initialized() else 1
        history = self._record.get(HISTORY, [])
        if not history or (history[-1]["training"], history[-1]["workers"]) != (self._name, workers):
            entry = {"training": self._name, "from_step": step, "workers": workers}
            self._record[HISTORY] = [*history, entry]


def worker_changes(facts: Mapping[str, Any]) -> str | None:
    """Return how the number of workers changed over a stage's trainings, in words; None where it did not."""
    history = facts.get(HISTORY, [])
    if len({entry["workers"] for entry in history}) < 2:
        return None
    return "; ".join(f"{each['workers']} from step {each['from_step']} of {each['training']}" for each in history)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
