"""Disk space of a grid's artifacts: present ones by their files, others by similar artifacts of the model."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmark.forecast.cost import BILLIONS
from benchmark.io.units import counted, format_bytes
from benchmark.plan.plan import Plan
from benchmark.plan.retention import ALL, NONE, VICTIMS, goes
from benchmark.plan.stage import Stage
from benchmark.store.local import MODELS
from benchmark.store.protocol import Store

Known = Mapping[tuple[str, ...], list[int]]  # sizes by group of similar models, see `_alike`
BYTES = 2  # of a stored weight, since models are saved in bfloat16


def summary(plan: Plan, store: Store, keep: str = ALL) -> str:
    """Return in a sentence the disk space of a plan's models, how much is there and free, and what helps if too little.

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
    to_make = [stage for stage in plan.missing if stage.kind in MODELS and stage.key not in there]
    new = _kept(to_make, known, keep)
    unknown = Counter(
        stage.settings["model"] for stage in to_make if not goes(stage.kind, keep) and _expected(stage, known) is None
    )
    left_out = ", ".join(f"{count} of {model}" for model, count in unknown.items())
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
        f"{'' if free is None else _remedy(to_make, known, keep, parts, free)}"
    )


def _kept(stages: Iterable[Stage], known: Known, keep: str) -> float:
    """Return the bytes of those models of stages that stay."""
    return sum(_expected(stage, known) or 0.0 for stage in stages if not goes(stage.kind, keep))


def _passing(stages: Iterable[Stage], known: Known, keep: str) -> float:
    """Return the bytes of the largest victim and the largest defended model among those that do not stay."""
    largest = dict[str, float]()
    for stage in stages:
        if stage.kind != "part" and goes(stage.kind, keep):
            largest[stage.kind] = max(largest.get(stage.kind, 0.0), _expected(stage, known) or 0.0)
    return sum(largest.values())


def _remedy(stages: Sequence[Stage], known: Known, keep: str, parts: float, free: int) -> str:
    """Return a clause on what to do where the models of stages need more than the free bytes; empty where they fit.

    Args:
        stages: missing ones that make a model.
        known: sizes of similar models.
        keep: which models are kept.
        parts: bytes of the parts of one defense.
        free: bytes.
    """

    def fits(keep: str) -> bool:
        return _kept(stages, known, keep) + _passing(stages, known, keep) + parts <= free

    if fits(keep):
        return ""
    helping = [each for each in (VICTIMS, NONE) if keep == ALL and fits(each)]
    fewer = f"add --keep-models {helping[0]}{' (or none)' if helping[0] == VICTIMS else ''}, " if helping else ""
    surely = _kept(stages, known, keep) > free
    return (
        f"; that {'does' if surely else 'may'} not fit: {fewer}choose another --store, or free some space "
        "('sande-bench store prune' may help)"
    )


def _largest_parts(plan: Plan, known: Known) -> float:
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


def _expected(stage: Stage, known: Known) -> float | None:
    for like in _alike(stage):
        if like in known:
            return statistics.fmean(known[like])
    model = stage.settings["model"]
    if model in BILLIONS:
        return BILLIONS[model] * 1e9 * BYTES
    weights = [path.stat().st_size for path in Path(model).glob("*.safetensors")] if Path(model).is_dir() else []
    return float(sum(weights)) or None
