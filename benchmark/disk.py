"""Disk space of a grid's artifacts: present ones by their files, others by similar artifacts of the model."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from benchmark.estimate import BILLIONS
from benchmark.keeping import ALL, goes
from benchmark.plan import Plan
from benchmark.stages import Stage
from benchmark.store import MODELS
from benchmark.store_protocol import Store

BYTES = 2  # of a stored weight, since models are saved in bfloat16


def sentence(plan: Plan, store: Store, keep: str = ALL) -> str:
    """Return in a sentence the disk space of a plan's models, how much of it is there, and the free space.

    Outcomes are not counted, as they are small.

    Args:
        plan: plan of a grid.
        store: holds the models.
        keep: which models are kept, see `benchmark.keeping`; each other one is there only until it is measured.
    """
    there = {
        stage.key: store.size(stage.kind, stage.key)
        for stage in plan.stages.values()
        if stage.kind in MODELS and stage.key in plan.done
    }
    known: dict[tuple[str, ...], list[int]] = {}
    for key, size in there.items():
        for like in _alike(plan.stages[key]):
            known.setdefault(like, []).append(size)
    new, unknown = 0.0, Counter[str]()
    for stage in plan.missing:
        if stage.kind in MODELS and stage.key not in there and not goes(stage.kind, keep):
            expected = _expected(stage, known)
            new += expected or 0.0
            unknown[stage.settings["model"]] += expected is None
    left_out = ", ".join(f"{count} of {model}" for model, count in unknown.items() if count)
    stay = [stage for stage in plan.stages.values() if stage.key in there or not goes(stage.kind, keep)]
    models = sum(stage.kind in MODELS for stage in stay)
    passing = "" if keep == ALL else f" (with --keep-models {keep}; plus those that are being measured)"
    free = store.free()
    return (
        f"Disk: {models} models{passing} take {told(sum(there.values()) + new)}"
        f"{f' without {left_out} (of unknown size)' if left_out else ''}; {told(sum(there.values()))} of it are there"
        f"{'' if free is None else f', and {told(free)} are free'}"
    )


def _alike(stage: Stage) -> tuple[tuple[str, ...], ...]:
    """Return groups of similar models that a stage's is in, the narrowest first: a guarded model holds two models."""
    model, method = stage.settings["model"], stage.settings["attack" if stage.kind == "attack" else "defense"]["name"]
    return (model, stage.kind, method), (model,)


def _expected(stage: Stage, known: dict[tuple[str, ...], list[int]]) -> float | None:
    for like in _alike(stage):
        if like in known:
            return statistics.fmean(known[like])
    model = stage.settings["model"]
    if model in BILLIONS:
        return BILLIONS[model] * 1e9 * BYTES
    weights = [path.stat().st_size for path in Path(model).glob("*.safetensors")] if Path(model).is_dir() else []
    return float(sum(weights)) or None


def told(size: float) -> str:
    """Return a byte count in SI units."""
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}" if size < 999.5 * bytes_ else f"{size / bytes_:.0f} {unit}"
    return f"{size:.0f} bytes"
