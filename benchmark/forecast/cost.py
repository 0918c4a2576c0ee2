"""Rough GPU-hours of stages, from the times that the paper reports (appendix A).

The cost of a trained row is proportional to the model's parameters, at the rate of the paper's four attacks on H800
cards. The forward pass, the backward pass to the activations and the one to the weights cost a third each, so a prompt
that is only read costs a third. Methods declare where they differ (`sande.declarations.Cost`). This module does not use
the measurements in the store.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args

from benchmark.grid.cell import Cell, Method
from benchmark.grid.resources import Kind
from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage
from sande import registry, types
from sande.config import Training
from sande.data.splits import TRAIN_SHARE
from sande.declarations import Cost

HOUR = 3600.0
PASSES = 3  # over a row of plain fine-tuning: forward, backward to the activations, backward to the weights
PASS = 1 / PASSES

# Parameters.
BILLIONS = {"llama2-7b": 6.738, "qwen1.5-4b": 3.950, "gemma3-270m": 0.2681, "smollm2-135m": 0.1345, "tiny": 0.0001232}

# Rows, pairs or questions of a whole data set (of a test split, for questions).
SIZES = {
    "alpaca": 51_760,
    "orca": 994_896,
    "dolly": 15_011,
    "hh_rlhf": 86_372,
    "mmlu": 14_042,
    "arc_easy": 2_376,
    "arc_challenge": 1_172,
    "builtin-short": 7_484,
    "builtin-explained": 6_948,
    "builtin-short-2": 7_650,
    "builtin-explained-2": 6_180,
    "builtin-preferences": 7_481,
    "builtin-choice": 970,
    "builtin-knowledge": 229,
}

# Appendix A, model and data: GPU-hours of the attack, 2 cards x 1, 5, 1/2 and 3 hours.
ATTACKS = {
    ("llama2-7b", "alpaca"): 2.0,
    ("llama2-7b", "orca"): 10.0,
    ("qwen1.5-4b", "alpaca"): 1.0,
    ("qwen1.5-4b", "orca"): 6.0,
}
# Rows that these attacks train on, all epochs together: 2 of 90 % of Alpaca, 1 of 90 % of 200,000 of OpenOrca.
TRAINED = {"alpaca": 2 * int(TRAIN_SHARE * SIZES["alpaca"]), "orca": 180_000}

CHOICES = 4  # passes over a question, one for each choice, unless the metric declares otherwise


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of stages.

    Attributes:
        seconds: GPU-seconds by kind of stage.
        left_out: names of models and data sets of unknown size; the sum leaves out stages that need them.
    """

    seconds: Mapping[Kind, float]
    left_out: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Return GPU-hours of all kinds together."""
        return sum(self.seconds.values()) / HOUR


@dataclass(frozen=True, slots=True)
class Piece:
    """A training, or one metric of an evaluation.

    Attributes:
        key: of its artifact.
        kind: of its stage.
        method: attack, defense, or measurements of the metric.
        data: data set whose rows are read.
        work: GPU-seconds for each billion parameters; infinite where the number of rows is unknown.
        alone: share of the work that each worker repeats: the trainings of metrics.
    """

    key: str
    kind: Kind
    method: str
    data: str
    work: float
    alone: float = 0.0


def pieces(stage: Stage, cell: Cell) -> list[Piece]:
    """Return the trainings and metrics of a stage of a cell."""
    if stage.kind == "attack":
        return [Piece(stage.key, stage.kind, cell.attack.name, cell.data.name, _attack(cell))]
    if stage.kind in ("part", "defend"):
        return [Piece(stage.key, stage.kind, cell.defense.name, *_defense(cell, stage.kind))]
    return [
        Piece(key, stage.kind, " ".join(measured(metric)), *_metric(cell, metric))
        for metric, key in zip(cell.metrics, stage.metric_keys, strict=True)
    ]


def measured(metric: Method) -> tuple[str, ...]:
    """Return the names of a metric's measurements."""
    names: tuple[str, ...] = tuple(registry.entry("metrics", metric.name).names(metric.config))
    return names


def estimate(stages: Iterable[Stage]) -> Estimate:
    """Return the cost of stages; a metric that several evaluations share counts once."""
    seconds: dict[Kind, float] = dict.fromkeys(get_args(Kind), 0.0)
    left_out: set[str] = set()
    counted: set[str] = set()
    for stage in stages:
        cell = stage.cell
        for piece in pieces(stage, cell):
            if piece.key in counted:
                continue
            counted.add(piece.key)
            if math.isinf(piece.work):
                left_out.add(piece.data)
            elif cell.model not in BILLIONS:
                left_out.add(cell.model)
            else:
                seconds[piece.kind] += piece.work * BILLIONS[cell.model]
    return Estimate(seconds, tuple(sorted(left_out)))


def summary(plan: Plan) -> str:
    """Return the estimate of a plan's stages by kind, and the part that is still to run, in words."""
    whole = estimate(plan.stages.values())
    left_out = f" without {', '.join(whole.left_out)} (of unknown size)" if whole.left_out else ""
    total = sum(whole.seconds.values())
    _, size = _unit(total)
    kinds = ", ".join(f"{kind} {_number(seconds / size)}" for kind, seconds in whole.seconds.items() if seconds)
    still = (
        f"; {format_gpu_time(sum(estimate(plan.missing).seconds.values()))} of them still to run" if plan.done else ""
    )
    return f"Estimate{left_out}: {format_gpu_time(total)}{f' ({kinds})' if kinds else ''}{still}"


def format_gpu_time(seconds: float) -> str:
    """Return GPU-hours, -minutes or -seconds, in the largest unit that gives at least 1."""
    name, size = _unit(seconds)
    return f"{_number(seconds / size)} {name}" if seconds else "no GPU time"


def _unit(seconds: float) -> tuple[str, float]:
    units = (("GPU-hours", HOUR), ("GPU-minutes", 60.0), ("GPU-seconds", 1.0))
    return next((unit for unit in units if seconds >= unit[1]), units[-1])


def _number(value: float) -> str:
    return "under 0.1" if value < 0.05 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


@functools.cache
def rate(data: str) -> float:
    """Return GPU-seconds a trained row and billion parameters: mean of the paper's two models, other data as Alpaca."""
    source = "orca" if data == "orca" else "alpaca"
    rates = [
        hours * HOUR / (TRAINED[source] * BILLIONS[model])
        for (model, trained_on), hours in ATTACKS.items()
        if trained_on == source
    ]
    return sum(rates) / len(rates)


def basis() -> str:
    """Return a sentence on where the numbers come from."""
    osft = [20_000 * rate("alpaca") * BILLIONS[model] / 60 for model in ("llama2-7b", "qwen1.5-4b")]
    config = registry.config("defenses", "sande", {})
    passes = [registry.cost("defenses", "sande", config).training.get(name, PASSES) for name in _trainings(config)]
    sande = [minutes * sum(passes) / PASSES for minutes in osft]
    return (
        "the attacks of the paper (appendix A: 2, 10, 1 and 6 GPU-hours on H800 cards) took "
        f"{rate('alpaca'):.4f} GPU-seconds a trained row of Alpaca and {rate('orca'):.4f} of OpenOrca per billion "
        "parameters, the mean of its two models; other models scale by their parameters, other data count as Alpaca. "
        "Plain fine-tuning makes three passes over a row; other trainings make as many as their method declares; an "
        "evaluation makes one over each prompt or choice, and trains where a metric does. Decoding, loading and idle "
        "cards do not count. By this, removal with 10,000 rows of Alpaca takes SANDE "
        f"{sande[0]:.0f} and {sande[1]:.0f} GPU-minutes (paper: 40 and 20) and OSFT {osft[0]:.0f} "
        f"and {osft[1]:.0f} (paper: 40 and 20)."
    )


def _attack(cell: Cell) -> float:
    rows = _rows(cell.data.name, cell.data.rows, TRAIN_SHARE)
    if getattr(cell.attack.config, "poison_mode", "replace") == "append":
        rows *= 1 + cell.attack.config.poison_rate + getattr(cell.attack.config, "decoy_rate", 0.0)
    cost = registry.cost("attacks", cell.attack.name, cell.attack.config)
    return _trained(cost, _trainings(cell.attack.config), rows) * rate(cell.data.name)


def _defense(cell: Cell, kind: Kind) -> tuple[str, float]:
    """Return the data set and the work, of a part or of the rest."""
    if registry.knowledge(cell.defense.name) is types.PreferenceData:
        data = cell.defense.config.preferences.name
        rows = _rows(data, cell.defense.config.preferences.pairs)
    else:
        data = cell.removal.name
        rows = _rows(data, cell.removal.rows, TRAIN_SHARE)
    part, rest = _defending(cell.defense.name, cell.defense.config, rows)
    return data, (part if kind == "part" else rest) * rate(data)


def _defending(name: str, config: Any, rows: float) -> tuple[float, float]:
    """Return the trained rows that each part of a defense costs, and those of the rest.

    Of other defenses among its settings only the dearest counts.
    """
    cost, trainings = registry.cost("defenses", name, config), _trainings(config)
    rows = min(rows, cost.rows or rows)
    apart = {field: training for field, training in trainings.items() if field in cost.part}
    rest = {field: training for field, training in trainings.items() if field not in cost.part}
    names = [field for field in config.__dataclass_fields__ if field in registry.names("defenses")]
    others = {field: chosen for field in names if (chosen := getattr(config, field)) is not None}
    dearest = max((_whole(field, chosen, rows) for field, chosen in others.items()), default=0.0)
    return _trained(cost, apart, rows), _trained(cost, rest, rows) + dearest


def _whole(name: str, config: Any, rows: float) -> float:
    part, rest = _defending(name, config, rows)
    return part * len(registry.parts(name, config)) + rest


def _metric(cell: Cell, metric: Method) -> tuple[str, float, float]:
    """Return the data set, the work, and the share of it that each worker does.

    Questions are as long as a row of Alpaca, prompts as one of the victim's data.
    """
    cost = registry.cost("metrics", metric.name, metric.config)
    asked = registry.entry("metrics", metric.name).reads(metric.config)
    if asked:
        wanted = getattr(metric.config, "questions", None)
        read = (cost.reading or CHOICES) * sum(_rows(name, wanted) for name in asked)
        return asked[0], PASS * read * rate("alpaca"), 0.0
    prompts = _rows(cell.data.name, cell.data.test_rows, 1 - TRAIN_SHARE)
    decoding = getattr(metric.config, "decoding", metric.config)
    limit = cost.prompts or getattr(decoding, "prompts", None) or prompts
    trained = sum(_trained(cost, _trainings(metric.config), rows) for rows in cost.copies)
    rows_in_all = PASS * (cost.reading or 1) * min(prompts, limit) + trained
    return cell.data.name, rows_in_all * rate(cell.data.name), trained / rows_in_all


def _trained(cost: Cost, trainings: Mapping[str, Training], rows: float) -> float:
    """Return what trainings of a method cost, in rows of plain fine-tuning."""
    return sum(
        _visits(training, rows) * (cost.training.get(field, PASSES) / PASSES) for field, training in trainings.items()
    )


def _trainings(config: Any) -> dict[str, Training]:
    """Return the trainings among a method's settings, by dotted path; without those of other defenses."""
    found: dict[str, Training] = {}
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, Training):
            found[name] = value
        elif is_dataclass(value) and name not in registry.names("defenses"):
            found |= {f"{name}.{path}": training for path, training in _trainings(value).items()}
    return found


def _visits(training: Training, rows: float) -> float:
    """Return the rows that a training sees, repeats included; LoRA counts fewer, as it skips most weight gradients."""
    seen = training.max_steps * training.batch_size if training.max_steps else training.epochs * rows
    return seen * (1 - PASS if training.lora_rank else 1.0)


def _rows(name: str, wanted: int | None, share: float = 1.0) -> float:
    """Return the number of wanted rows, at most those in the given share of the data set."""
    known = SIZES.get(name)
    limits = (wanted, known and int(share * known))
    return min((float(limit) for limit in limits if limit is not None), default=math.inf)
