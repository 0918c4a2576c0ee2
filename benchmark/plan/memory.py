"""Share of a GPU that a stage needs, by the peak memory of similar stages that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, get_args

from benchmark.grid.resources import Kind
from benchmark.plan.schedule import UNIT
from benchmark.plan.stage import Stage
from benchmark.store.local import DROPPED
from benchmark.store.manifest import OTHER_FORM
from benchmark.store.protocol import Store

KINDS = (*get_args(Kind), DROPPED)  # of manifests that have the costs of a stage
MARGIN = 1.25  # for memory that the allocator holds beyond the peak, and for slightly larger stages
CONTEXT = 600 * 2**20  # bytes of a process on a GPU without its tensors (CUDA context, libraries); an allowance
MOST = 8  # stages on one GPU
# Settings that change the memory of a training; no others do.
_SIZES = ("batch_size", "micro_batch_size", "max_length", "lora_rank", "precision", "optimizer", "sharpness")
# Settings of a method that do, too: parrots that train together, each with a copy of every row.
_PARROTS = ("restarts", "fresh", "controls", "look", "parrots")

Like = tuple[Any, ...]


def share(peaks: Iterable[int], total: int) -> float:
    """Return the share 1/N of a GPU that holds the largest peak with margin, N at most `MOST`; 1 without a peak.

    Args:
        peaks: bytes of tensors, as the allocator counts them.
        total: bytes of the GPU.
    """
    peak = max(peaks, default=None)
    if peak is None:
        return 1.0
    fitting = int(total // (MARGIN * peak + CONTEXT))
    return UNIT // max(1, min(MOST, fitting)) / UNIT


class Peaks:
    """Peak GPU memory of stages, by kind, model, method and size of the batches."""

    def __init__(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        # The largest peak and the smallest GPU: a share must be large enough wherever a stage is placed.
        self._seen: dict[Like, tuple[int, int]] = {}
        for manifest in manifests:
            self.learn(manifest)

    def learn(self, manifest: Mapping[str, Any]) -> None:
        """Add the peak in a stage's manifest; one on a CPU, of several workers, or of another form says nothing."""
        if "device_memory_bytes" not in manifest or manifest.get("workers", 1) != 1:
            return
        with suppress(*OTHER_FORM):
            like = _like(manifest["kind"], manifest["settings"])
            peak, total = int(manifest["peak_memory_bytes"]), int(manifest["device_memory_bytes"])
            known = self._seen.get(like, (peak, total))
            self._seen[like] = max(peak, known[0]), min(total, known[1])

    def share(self, stage: Stage) -> float:
        """Return the share of a GPU for a stage; a whole one for the first of its kind, which measures it."""
        seen = self._seen.get(_like(stage.kind, stage.settings))
        return share([seen[0]], seen[1]) if seen else share([], 0)


def peaks_of(store: Store) -> Peaks:
    """Return the peaks of all stages in a store."""
    return Peaks(manifest for kind in KINDS for manifest in store.manifests(kind))


def _like(kind: str, settings: Mapping[str, Any]) -> Like:
    """Return a key that stages of about the same memory share."""
    if kind == "evaluate":
        metrics = sorted({(metric["name"], *_parrots(metric)) for metric in settings["metrics"]})
        return kind, settings["model"], tuple(metrics)
    method = settings["attack" if kind == "attack" else "defense"]
    trainings = [value for value in method.values() if isinstance(value, Mapping) and "batch_size" in value]
    sizes = tuple(tuple(training.get(name) for name in _SIZES) for training in trainings)
    anchored = bool(method.get("anchor"))  # of an attack, to a copy of the model
    return kind, settings["model"], method["name"], sizes, anchored, _parrots(method)


def _parrots(method: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return the settings of a method, and of those that it runs, that count parrots; pairs of name and number."""
    inner = (one for value in method.values() if isinstance(value, Mapping) for one in _parrots(value))
    return (*((name, method[name]) for name in _PARROTS if name in method), *inner)
