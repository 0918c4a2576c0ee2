"""A stage on a worker: a Tune trial in a warm process, and in it a Ray Train run, of one process or a group.

The driver needs the class alone; the worker imports the libraries that compute.
"""

from __future__ import annotations

import datetime
import functools
import gc
import importlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.collective
from ray import tune

from benchmark.execution import metrics, ray_env
from benchmark.execution.status import Writer
from benchmark.grid.keys import library_versions
from benchmark.grid.resources import Kind, Tracker
from benchmark.io import logs
from benchmark.io.text import visible
from benchmark.plan.batches import group_size
from benchmark.plan.failures import LOST_NODE, StageError, classify, lost_component, time_limit
from benchmark.plan.stage import Stage
from benchmark.store.protocol import Store
from sande import compute
from sande.errors import NonFiniteError, UserError
from sande.training.sharding import Sharding

if TYPE_CHECKING:
    from transformers import Trainer


# For which a worker of an evaluation waits for the others; resources.timeout limits a stage.
PATIENCE = datetime.timedelta(days=365)
FIRST_FAILURE = "first failure"  # where the workers of an evaluation in shards meet, line and kind of an error

HEAVY = ("sande.training.fit", "ray.train.torch", "ray.train.huggingface.transformers")


def warm_up() -> None:
    """Import the libraries that compute, which takes seconds, while the driver looks for mistakes in the data."""
    for module in HEAVY:
        importlib.import_module(module)
    logs.quiet()


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """Settings that all trials of a run share whose stages have the same resources.

    Attributes:
        store: location of the store, a path or URI.
        status: folder for the files of `benchmark.execution.status`; None: stages print their progress instead.
        workers: processes of a stage that runs in a worker group.
        least_workers: processes with which it may start where nodes were lost.
        cpus: CPUs of a worker that the user set.
        grouped: kinds of stages that do.
        sharding: of the trainings of a stage.
        in_shards: whether each worker of an evaluation holds a shard of the model.
        per_worker: amounts of Ray's resources that one worker gets.
        engine: that decodes in evaluations.
        timeout: seconds that a stage may take; None: no limit.
        report_to: trackers of the trainings.
        checkpoint_minutes: from one checkpoint of a training to the next.
        libraries: versions that are in the keys, which every worker must have.
        metered: name of the grid that metrics have, see `benchmark.execution.metrics`; empty: none are recorded.
    """

    store: str
    status: str | None
    workers: int
    least_workers: int
    cpus: int | None
    grouped: tuple[Kind, ...]
    sharding: Sharding
    in_shards: bool
    per_worker: Mapping[str, float]
    engine: str
    timeout: float | None
    report_to: tuple[Tracker, ...]
    checkpoint_minutes: float
    libraries: Mapping[str, str]
    metered: str = ""


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage, as a trial is to do it.

    Attributes:
        stage: what to do.
        share: of what one worker gets, 1 for all of it.
        filled: part of its workers for which there is room.
        settings: of the run, for the resources of the stage.
    """

    stage: Stage
    share: float
    filled: float
    settings: TrialSettings

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> StageJob:
        """Read a trial's config: the searcher's suggestion, and the settings of the Tuner."""
        settings = config["settings"][config["sort"]]
        return cls(Stage.from_json(config["stage"]), config["share"], config["filled"], settings)

    @property
    def grouped(self) -> bool:
        """Return whether the stage runs in a worker group."""
        return self.stage.kind in self.settings.grouped

    @property
    def workers(self) -> int:
        """Return the workers of the group that does the stage now; 0 where none does."""
        if not self.grouped:
            return 0
        workers = self.settings.workers
        return group_size(self.stage, workers, int(workers * self.filled + 1e-6))

    @property
    def elastic(self) -> bool:
        """Return whether the group may have fewer workers."""
        return self.settings.least_workers < self.settings.workers


class StageTrial(tune.Trainable):
    """A trial that does one stage; the process stays for the next one."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first stage of this process."""
        from benchmark.store.remote import tidy

        warm_up()
        self._job = StageJob.of(config)
        tidy(self._job.settings.store)  # of a machine where no driver starts, which does it there

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next stage of this process."""
        self._job = StageJob.of(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Do the whole stage."""
        from benchmark.store.remote import reopen

        stage = self._job.stage
        ray_env.name_process(stage.label)
        _bound_memory(self._job.share)
        try:
            store = reopen(self._job.settings.store)
            check_libraries(self._job.settings.libraries)
            with time_limit(self._job.settings.timeout):
                if stage.kind == "evaluate":
                    self._evaluate(stage, store)
                elif not store.has(stage.kind, stage.key):  # else another run did it since this one was planned
                    self._train(stage)
        except Exception as error:
            failure = classify(error)
            return {"ok": 0, "done": True, "error": str(failure), "failure": failure.kind}
        finally:
            import torch

            if torch.cuda.is_available():  # this process stays, and its neighbours on the GPU need what it holds
                gc.collect()
                torch.cuda.empty_cache()
        return {"ok": 1, "done": True}

    def _train(self, stage: Stage) -> None:
        from ray.train.torch import TorchTrainer

        from benchmark.store.remote import reopen
        from sande.models import catalog, loading

        workers = self._job.workers
        model = catalog.base_of(stage.settings["model"])
        if catalog.made_here(model):
            loading.prepare(model, reopen(self._job.settings.store).models)
        self._fit(TorchTrainer, _train_loop, workers, report_errors=workers > 0)

    def _evaluate(self, stage: Stage, store: Store) -> None:
        from ray.train.torch import TorchTrainer
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of a star import there

        from benchmark.execution import stages

        if not self._job.grouped:
            with _evaluating(self._job) as say:
                stages.evaluate(stage, store, say, self._job.settings.engine)
            return
        # In this process, which outlives every worker. Ray ends the group where one is lost, so no worker waits on.
        meeting = TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
        config = _process_group() if self._job.settings.in_shards else _no_process_group()
        trainer = functools.partial(TorchTrainer, torch_config=config)
        try:
            self._fit(trainer, _evaluation_loop, self._job.workers, meeting=(meeting.host, meeting.port))
        except Exception as error:
            if lost_component(error) != LOST_NODE and meeting.check([FIRST_FAILURE]):
                raise StageError(*json.loads(meeting.get(FIRST_FAILURE))) from None
            raise

    def _fit(self, trainer: Callable[..., Any], loop: Callable[..., Any], workers: int, **more: Any) -> None:
        """Run the loop in Ray Train: in this process without workers, else in a group of them.

        Raises:
            StageError: a worker raised or returned what the user is told.
        """
        import ray.train

        if workers:
            ray_env.pass_address()
        per_worker, label = dict(self._job.settings.per_worker), self._job.stage.label
        made = trainer(
            loop,
            train_loop_config={"job": self._job, **more},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=per_worker.get("GPU", 0) > 0,
                resources_per_worker=per_worker if workers else None,
            ),
            run_config=ray.train.RunConfig(
                name=f"{label.replace(' ', '-')}-{uuid.uuid4().hex[:8]}", storage_path=self.logdir
            ),
        )
        try:
            failure = made.fit().return_value
        except ray.train.WorkerGroupError as error:
            if told := _told(error):
                raise told from None
            raise
        if failure:
            raise StageError(*failure)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: a stage's result is in the store."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Do nothing: a stage's result is in the store."""


def _told(error: ray.train.WorkerGroupError) -> StageError | None:
    """Return the error for the user that a worker of a group raised, of the first one that did; None: none did.

    Others may have ended in the same moment with what followed from it.
    """
    raised = (failure for _, failure in sorted(error.worker_failures.items()))
    return next((failure for failure in raised if isinstance(failure, StageError)), None)


def _process_group() -> Any:
    """Return a config for TorchTrainer with a process group, in which workers compute what one model computes."""
    from ray.train.torch import TorchConfig

    return TorchConfig(timeout_s=int(PATIENCE.total_seconds()))


def _no_process_group() -> Any:
    """Return a config for TorchTrainer without a process group, which the trainings of metrics would take for theirs.

    Not a TorchConfig, with which the controller of the group would spend seconds on importing torch.
    """
    from ray.train.backend import BackendConfig

    class NoProcessGroup(BackendConfig):
        backend = "gloo"  # TorchTrainer asks for a name, which nothing uses here

    return NoProcessGroup()


def _train_loop(config: dict[str, Any]) -> None:
    """Do one attack, part or defense on this worker.

    Raises:
        StageError: what the user is told, in a worker group. Ray Train then ends the group, whose other workers may
            wait for this one in a sum of gradients; had it returned, they would wait on for half an hour.
    """
    import ray.train
    import ray.train.huggingface.transformers

    from benchmark.execution import stages, tracking
    from benchmark.store.remote import reopen

    logs.quiet()
    job: StageJob = config["job"]
    stage, settings = job.stage, job.settings
    rank, size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    store, say = reopen(settings.store), _speaker(stage)
    watched = tracking.reporting(settings.report_to if rank == 0 else (), store.tracking, stage.label, say)
    metered = metrics.counting_trained(settings.metered, stage) if settings.metered and rank == 0 else None

    def prepare(trainer: Trainer) -> Trainer:
        reported = watched(metered(trainer) if metered else trainer)
        prepared: Trainer = ray.train.huggingface.transformers.prepare_trainer(reported)
        return prepared

    try:
        check_libraries(settings.libraries)
        if size > 1:
            stages.compute_in(ray.train.collective.broadcast_from_rank_zero(compute.compute_type()))
        watch = Writer(settings.status, stage.key).watch if settings.status else None
        interval = 60 * settings.checkpoint_minutes
        agree = ray.train.collective.broadcast_from_rank_zero if size > 1 else bool
        stages.train(stage, store, prepare, say, rank, interval, settings.sharding, watch, size, job.elastic, agree)
    except (UserError, NonFiniteError) as error:
        if not config["report_errors"]:
            raise
        raise StageError(*_line_and_kind(error)) from None


def _evaluation_loop(config: dict[str, Any]) -> tuple[str, str] | None:
    """Do one evaluation on this worker of a group; return an error of any of its workers as text and kind."""
    import ray.train
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of a star import there

    from benchmark.execution import stages
    from benchmark.store.remote import reopen
    from sande.inference.workers import WorkerGroupError, worker_group

    logs.quiet()
    job: StageJob = config["job"]
    context, (host, port) = ray.train.get_context(), config["meeting"]
    rank = context.get_world_rank()
    meeting = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    try:
        with worker_group(meeting, rank, context.get_world_size(), _line_and_kind) as workers:
            check_libraries(job.settings.libraries)
            store = reopen(job.settings.store)
            with _evaluating(job, metered=not job.settings.in_shards or rank == 0) as say:
                stages.evaluate(job.stage, store, say, job.settings.engine, workers, in_shards=job.settings.in_shards)
    except WorkerGroupError as error:
        line, kind = error.description
        if job.settings.in_shards:  # others may wait for this worker's part of a sum, and end only where it fails
            meeting.compare_set(FIRST_FAILURE, "", json.dumps([line, kind]))
            raise
        return line, kind
    return None


def _line_and_kind(error: Exception) -> tuple[str, str]:
    failure = classify(error)
    return str(failure), failure.kind


def _speaker(stage: Stage) -> Callable[[str], None]:
    return lambda line: print(visible(f"{stage.label} {line}"), flush=True)


def _evaluating(job: StageJob, *, metered: bool = True) -> AbstractContextManager[Callable[[str], None]]:
    """Count tokens in the block of an evaluation, if they are `metered`; yield the receiver of its progress.

    That is the driver's view or, where it cannot see that, the log.
    """
    settings, stage = job.settings, job.stage
    say = Writer(settings.status, stage.key).say if settings.status else _speaker(stage)
    return metrics.counting_decoded(settings.metered if metered else "", stage, say)


def check_libraries(planned: Mapping[str, str]) -> None:
    """Refuse a machine whose libraries have other versions than those in the stages' keys.

    Raises:
        UserError: one has.
    """
    for name, version in library_versions().items():
        if version != planned[name]:
            raise UserError(
                f"{name} is {version} on this worker and {planned[name]} where the run was started, so its results "
                f"would get a wrong key; install {name}=={planned[name]}"
            )


def _bound_memory(share: float) -> None:
    """Limit this process to its share of a GPU's memory, so that it runs out of memory and not its neighbours."""
    import torch

    from benchmark.plan.memory import CONTEXT

    if torch.cuda.is_available():
        context = CONTEXT / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(share if share == 1.0 else share - context)
