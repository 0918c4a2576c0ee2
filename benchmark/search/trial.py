"""The trials of a search on Ray Tune. Each trains the defense on the victim from the store, and keeps only its reports.

A trial is one process, whatever `resources.workers` is; many trials at a time fill a cluster.
"""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmark.execution import provenance, stages
from benchmark.execution.cluster import start_again, worker_resources
from benchmark.execution.driver import gave_up, run_config
from benchmark.execution.trial import check_libraries
from benchmark.execution.watch import RayEndedError
from benchmark.grid.cell import Cell
from benchmark.grid.keys import library_versions
from benchmark.grid.resources import ResourcesByStage
from benchmark.grid.space import FAILED, FINISHED, STOPPED, Job, Search, with_values
from benchmark.io.logs import quiet
from benchmark.plan.failures import StageError, classify, time_limit
from benchmark.plan.plan import stages_of
from benchmark.search.held_out import evidence
from benchmark.search.judge import judge_of
from benchmark.store.protocol import Store
from benchmark.store.remote import open_store
from sande import registry, types
from sande.config import Training
from sande.errors import NonFiniteError, UserError
from sande.models import loading
from sande.training.objective import ResponseLoss


def run(job: Job, store: Store, grid: ResourcesByStage) -> list[dict[str, Any]]:
    """Run all trials of a search, each with the resources of its defense; once more where Ray ended and starts again.

    Returns:
        For each trial, in the order of the proposals: `values`, `losses` at its reports (None at a report that is
        skipped since the training has fewer steps), `state`, `error`, `seconds` and `device`.

    Raises:
        UserError: no node has the resources of a trial.
        StageError: Ray ended the search.
        KeyboardInterrupt: the user interrupted it.
    """
    while True:
        try:
            return _run(job, store, grid)
        except RayEndedError as error:
            ended = str(error)
        if not start_again():
            raise StageError(f"search: not finished, {ended}; run again to go on")


def _run(job: Job, store: Store, grid: ResourcesByStage) -> list[dict[str, Any]]:
    folder = store.scratch("tune")
    resources = grid.of(next(stage for stage in stages_of(job.cell) if stage.kind == "defend"))
    try:
        tuner = tune.Tuner(
            tune.with_resources(_trial, tune.PlacementGroupFactory([worker_resources(replace(resources, workers=1))])),
            param_space={
                "job": job,
                "store": store.location,
                "timeout": resources.timeout,
                "libraries": library_versions(),
                "trial": tune.grid_search(list(range(len(job.proposals)))),
            },
            tune_config=tune.TuneConfig(
                scheduler=ASHAScheduler(
                    time_attr="report", metric="loss", mode="min", max_t=job.search.reports, reduction_factor=2
                ),
                reuse_actors=True,
            ),
            run_config=run_config(folder),
        )
        results = list(tuner.fit())  # in the order of grid_search
    except RuntimeError as error:
        raise StageError(f"search: not finished, {gave_up(error)}; run again to go on") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ended = [result for result in results if result.error or (result.metrics or {}).get("done")]
    if len(ended) < len(job.proposals):
        raise KeyboardInterrupt  # Tune returns early instead
    return [
        {"values": values} | _outcome(result, job.search) for values, result in zip(job.proposals, results, strict=True)
    ]


def _outcome(result: Any, search: Search) -> dict[str, Any]:
    """Return the losses of a trial, its state and its error."""
    reported = result.metrics or {}
    losses = list(reported.get("losses", ()))
    error = f"the trial's process ended ({type(result.error).__name__})" if result.error else reported.get("error")
    state = FAILED if error else FINISHED if len(losses) == search.reports else STOPPED
    seconds, device = reported.get("time_total_s"), reported.get("device")
    return {"losses": losses, "state": state, "error": error, "seconds": seconds, "device": device}


def _trial(config: dict[str, Any]) -> None:
    """Run one trial in its process."""
    quiet()
    job, number = config["job"], config["trial"]
    losses: list[float | None] = []

    def report(count: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss on held-out rows is {loss}; use lower values in the search")
        losses.extend([None] * (count - 1 - len(losses)))
        losses.append(loss)
        say(f"{count}/{job.search.reports}: loss {loss:.3f} on held-out rows")
        tune.report({"loss": loss, "report": count, "losses": list(losses), "device": provenance.device()})

    say = functools.partial(print, f"{job.label} trial {number}", flush=True)
    try:
        check_libraries(config["libraries"])
        with time_limit(config["timeout"]):
            report(job.search.reports, _train(job, number, open_store(config["store"]), say, report))
    except Exception as error:
        # ASHA needs a loss of every trial; at report 0 it compares none.
        tune.report({"loss": math.inf, "report": 0, "losses": losses, "error": str(classify(error))})


def _train(
    job: Job, number: int, store: Store, say: Callable[[str], None], report: Callable[[int, float], None]
) -> float:
    """Train the defense with one of the proposals, report on the way, and return the loss of its model.

    Reports come from the last training of the defense, which makes the model that is measured. For SANDE that is
    eliminate: during simulate only the parrot trains, and the model does not change. Settings of a method hold a
    `Training` for each training, so their number identifies the last one; each part does those that it declares.
    A defense that repeats its trainings, as `sande_rounds` does, reports from the first repetition.
    """
    cell = with_values(job.cell, job.proposals[number])
    victim = loading.load_folder(store.read("attack", cell.attack_key), torch.float32)
    settings = [getattr(cell.defense.config, name) for name in cell.defense.config.__dataclass_fields__]
    trainings = [setting for setting in settings if isinstance(setting, Training)]
    data = stages.reveal(cell, victim, store)
    in_all = len(trainings) + (len(cell.defense.parts) - 1) * len(_of_a_part(cell))
    longest = max([training.max_length for training in trainings], default=Training().max_length)
    judge = judge_of(evidence(job, victim.tokenizer, data), victim.tokenizer, longest)
    begun = itertools.count(1)

    def prepare(trainer: Trainer) -> Trainer:
        if next(begun) == in_all:
            model: Any = trainer.model.model if isinstance(trainer.model, ResponseLoss) else trainer.model
            trainer.add_callback(_Reporter(job.search.reports, lambda count: report(count, judge.loss(model))))
        return trainer

    scratch = store.scratch("search")
    try:
        run = types.Run(seed=cell.defense_seed, scratch=str(scratch), prepare=prepare, say=say)
        repaired = registry.entry("defenses", cell.defense.name).defend(victim, data, cell.defense.config, run)
        if isinstance(repaired, types.Guard):
            raise UserError(f"search: {cell.defense.name} changes decoding, which has no loss to compare; remove it")
        return judge.loss(repaired)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _of_a_part(cell: Cell) -> tuple[str, ...]:
    return registry.cost("defenses", cell.defense.name, cell.defense.config).part


class _Reporter(TrainerCallback):
    """Call `report` with 1, 2, … evenly over a training, except the last, which is due when the defense ends."""

    def __init__(self, reports: int, report: Callable[[int], None]) -> None:
        self._reports, self._report = reports, report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report if a report is due at this step."""
        counts = {round(state.max_steps * count / self._reports): count for count in range(1, self._reports)}
        if state.global_step in counts and state.global_step < state.max_steps:
            self._report(counts[state.global_step])
