"""Declarations of methods for reports and forecasts; no result depends on them.

`sande.registry.code_version` leaves this module out, and with it a method's `MEASURES`, `SHOWN_BY` and `cost`: a new
label or a better forecast gives no stage a new key. It leaves out `LIBRARIES`, too, since `benchmark.grid.keys` has the
versions of these packages in the keys of evaluations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

MetricKind = Literal["backdoor", "utility", "part", "quality", "probability", "text"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One measurement of a metric, for tables and leaderboards.

    Attributes:
        name: the measurement's name; `{}` in it is a number that the settings decide, as in
            `asr_after_relearning_{}`.
        label: column heading; may repeat the `{}`. Empty: the name.
        kind: `backdoor`: what is left of the backdoor; `utility`: what the model can do on a whole task; `part`: a
            group of a task's questions, or another score of the same answers; `quality`: how good the answers to
            prompts are; `probability`: of the planted response; `text`: answers to read.
        best: the direction in which a repaired model is better; None: `high` for `utility`, `part` and
            `quality`, else `low`.
        column: whether a leaderboard shows the measurement in a column of its own where any result has it.
        durability: whether it shows how long a removal lasts.
        variant_of: measurement of the same task by another prompt; a mean over tasks counts only one of them.
        whole_model: whether the metric trains or rounds a copy of the model, or trains through it, so that each worker
            has to hold all of it; the others also measure a model in shards.
    """

    name: str
    label: str = ""
    kind: MetricKind = "utility"
    best: Literal["high", "low"] | None = None
    column: bool = False
    durability: bool = False
    variant_of: str = ""
    whole_model: bool = False

    def __post_init__(self) -> None:
        """Fill in the label; refuse an unknown kind, which no table would show."""
        if self.kind not in get_args(MetricKind):
            raise ValueError(f"{self.name}: unknown kind '{self.kind}'; use one of {', '.join(get_args(MetricKind))}")
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def higher_is_better(self) -> bool:
        """Return True if a repaired model should score high."""
        return self.best == "high" if self.best else self.kind in ("utility", "part", "quality")

    def matched(self, name: str) -> MetricInfo | None:
        """Return the declaration with `{}` filled in, or None where it declares another measurement."""
        if name == self.name:
            return self
        before, placeholder, after = self.name.partition("{}")
        found = re.fullmatch(f"{re.escape(before)}(\\d+){re.escape(after)}", name) if placeholder else None
        return replace(self, name=name, label=self.label.replace("{}", found[1])) if found else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The clean models by which a detector's threshold was chosen; on others an alarm has another rate.

    Attributes:
        models: in words.
        model_type: of their configuration, such as `llama`.
        vocabulary: tokens of their tokenizer.
        hidden_size: width of their layers.
        layers: number of their layers.
        prompt_format: name of the format of their prompts.
        data: data set of the clean rows.
    """

    models: str
    model_type: str
    vocabulary: int
    hidden_size: int
    layers: int
    prompt_format: str
    data: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Compute that a method declares for forecasts, counted in passes of the model.

    A step of plain fine-tuning makes three passes over each row: forward, backward to the activations, backward to the
    weights.

    Attributes:
        training: passes over each row, by the dotted path of the setting that holds the `Training`; 3 if left out.
        seen: rows of each training that does not see all, by the same path.
        part: of a defense with parts, names of the settings whose trainings each part does; `defend` does the others.
        rows: of a defense, clean rows that it trains on at most; None: all that it gets.
        reading: of a metric, forward passes over each test prompt or question; None: one a prompt, four a question.
        prompts: of a metric, test prompts that it reads at most; None: its setting `prompts`, or `prompts` of its
            `decoding`, else all.
        copies: of a metric, number of rows that each copy of the model is trained on.
    """

    training: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, int] = field(default_factory=dict)
    part: tuple[str, ...] = ()
    rows: int | None = None
    reading: float | None = None
    prompts: int | None = None
    copies: tuple[int, ...] = ()
