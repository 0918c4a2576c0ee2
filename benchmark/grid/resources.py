"""What one stage may use of the cluster. It is in no key, since it does not change what is computed.

Stages of a grid may differ in it, see `benchmark.grid.stage_resources`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from sande.config import configuration, setting

Kind = Literal["attack", "part", "defend", "evaluate"]  # a part is a piece of a defense, see `sande.parts`
Tracker = Literal["tensorboard", "mlflow", "wandb"]
TENSOR = "tensor"
# Shardings of each kind of stages. Those of trainings may also be set for all kinds; evaluations ignore them.
TRAINING_SHARDINGS = ("none", "zero2", "zero3")
EVALUATION_SHARDINGS = ("none", TENSOR)
YEAR = 365 * 24 * 3600  # seconds; far larger numbers overflow the timer of a stage


class StageLike(Protocol):
    """Part of a stage by which its resources are chosen."""

    @property
    def kind(self) -> Kind:
        """Return attack, part, defend or evaluate."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return settings of a cell that needs it."""


class ResourcesByStage(Protocol):
    """Resources of each stage of a grid."""

    def of(self, stage: StageLike) -> Resources:
        """Return the resources of a stage."""


@configuration
class Resources:
    """Resources of one stage. They do not change what is computed, so they are in no key.

    Engine and device change it by rounding alone. They are in no key either, so an outcome in the store is not computed
    again by the other one; each outcome records them (`device`, and vLLM among `versions`).
    """

    workers: int = setting(
        1, "processes of a stage; 2 or more form a Ray Train worker group, except in an evaluation by vLLM", ge=1
    )
    min_workers: int | None = setting(
        None,
        "processes with which a worker group starts where nodes were lost, or where the cluster has no more; null: "
        "exactly `workers`",
        ge=1,
    )
    cpus: int | None = setting(None, "CPUs of one worker; null: a node's CPUs divided by its GPUs", ge=1)
    gpus: float | None = setting(
        None,
        "GPUs of one worker; null: one where there are any, or the share that similar stages needed",
        ge=0,
    )
    side_by_side: int = setting(
        1,
        "without a GPU: number of defenses, their parts, or evaluations that share the CPUs of one attack; two at a "
        "time in one thread each are faster than one after the other in two threads",
        ge=1,
    )
    timeout: float | None = setting(
        None, "seconds after which a stage is stopped and counts as failed; null: no limit", gt=0, le=YEAR
    )
    report_to: tuple[Tracker, ...] = setting(
        ("tensorboard",),
        "trackers that get the losses of attacks and defenses while they train, see "
        "`benchmark.execution.tracking`: tensorboard (files in the store), mlflow, wandb",
    )
    checkpoint_minutes: float = setting(
        10.0,
        "minutes between checkpoints of an attack or defense, from which a killed one resumes; a shorter training "
        "writes none",
        ge=0,
    )
    engine: Literal["built-in", "vllm"] = setting(
        "built-in",
        "engine that decodes and scores choices in evaluations; vllm: an extra, for whole GPUs",
    )
    sharding: Literal["none", "zero2", "zero3", "tensor"] = setting(
        "none",
        "for big models: DeepSpeed (an extra) shards optimizer states and gradients over the workers of an attack or "
        "defense (zero2), and the weights too (zero3); tensor, for `evaluate`, shards the weights over its workers",
    )
    offload: bool = setting(
        False, "with sharding: keep the shards, except gradients, in the machine's memory instead of the GPU's"
    )
    recompute: bool = setting(
        False, "activation checkpointing: keep only the input of each block, and recompute the rest"
    )

    def of(self, stage: StageLike) -> Resources:
        """Return these resources: without others, all stages have the same."""
        return self.of_kind(stage.kind)

    def of_kind(self, kind: Kind) -> Resources:
        """Return these resources with one worker where stages of a kind are one process whatever `workers` is."""
        alone = self.workers > 1 and not self.grouped(kind)
        return dataclasses.replace(self, workers=1, min_workers=None) if alone else self

    @property
    def least_workers(self) -> int:
        """Return the processes with which a stage may start; fewer might not hold a model in shards."""
        if self.sharding == TENSOR:
            return self.workers
        return min(self.min_workers or self.workers, self.workers)

    def grouped(self, kind: Kind) -> bool:
        """Return whether stages of a kind run in a worker group, which DeepSpeed needs even for one worker."""
        if kind == "evaluate":
            return self.workers > 1 and self.engine != "vllm"  # vLLM is one process
        return self.workers > 1 or self.sharding != "none"
