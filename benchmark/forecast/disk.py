"""Disk space of a grid's artifacts: present ones by their files, others by similar artifacts of the model."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from benchmark.forecast.cost import BILLIONS
from benchmark.io.units import counted, format_bytes
from benchmark.plan.plan import Plan
from benchmark.plan.retention import ALL, goes
from benchmark.plan.stage import Stage
from benchmark.store.local import MODELS
from benchmark.store.protocol import Store

BYTES = 2  # of a stored weight, since models are saved in bfloat16


def summary(plan: Plan, store: Store, keep: str = ALL) -> str:
    """Return in a sentence the disk space of a plan's models, how much of it is there, and the free space.

    Outcomes are not counted, as they are small.

    Args:
        plan: plan of a grid.
        store: holds the models.
        keep: which models are kept, see `benchmark.plan.retention`; each other one is there only until it is measured.
    """
    there = {
        stage.key: store.size(stage.kind, stage.key)
        for stage in plan.stages.values()
        if stage.kind in MODELS and stage.kind != "part" and stage.key in plan.done
        if store.has(stage.kind, stage.key)  # a dropped model is done, and takes nothing
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
    stay = [*there, *(stage.key for stage in plan.missing if stage.kind in MODELS and not goes(stage.kind, keep))]
    passing = "" if keep == ALL else f" (with --keep-models {keep}; plus those that are being measured)"
    parts = _largest_parts(plan, known)
    free = store.free()
    held = format_bytes(sum(there.values()))
    return (
        f"Disk: {counted(len(stay), 'model')}{passing} {'takes' if len(stay) == 1 else 'take'} "
        f"{format_bytes(sum(there.values()) + new)}"
        f"{f' without {left_out} (of unknown size)' if left_out else ''}; {held} of it are there"
        f"{'' if free is None else f', and {format_bytes(free)} are free'}"
        f"{f'; the parts of a defense take up to {format_bytes(parts)} more until it is done' if parts else ''}"
    )


def _largest_parts(plan: Plan, known: dict[tuple[str, ...], list[int]]) -> float:
    """Return the bytes of all parts of that missing defense whose parts take most, each at most a whole model."""
    return max(
        (
            sum(_expected(plan.stages[need], known) or 0.0 for need in stage.needs if plan.stages[need].kind == "part")
            for stage in plan.missing
            if stage.kind == "defend"
        ),
        default=0.0,
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
