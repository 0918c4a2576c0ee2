"""A stage on a worker: a Tune trial in a warm process, and in it a Ray Train run, of one process or a group.

The driver needs the class alone; what computes is imported by the worker.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from benchmark import logs
from benchmark.failures import StageError, classify, limited
from benchmark.stages import Stage
from benchmark.status import Writer
from benchmark.store_protocol import Store
from sande.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    from transformers import Trainer

# That a worker of an evaluation has with the others: what limits a stage is resources.timeout.
PATIENCE = datetime.timedelta(days=365)

HEAVY = ("sande.training", "ray.train.torch", "ray.train.huggingface.transformers")


def warm_up() -> None:
    """Import what stages compute with: seconds of a new process, while the driver looks for mistakes in the data."""
    for module in HEAVY:
        importlib.import_module(module)
    logs.quiet()


class StageTrial(tune.Trainable):
    """A trial that does one stage; the process stays for the next one."""

    def setup(self, config: dict[str, Any]) -> None:
        """First stage of this process."""
        warm_up()
        self._job = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Next stage of this process."""
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        """The whole stage."""
        from benchmark.remote_store import open_store

        stage, store = Stage.from_json(self._job["stage"]), open_store(self._job["store"])
        ray._raylet.setproctitle(f"ray::{stage.label}")  # as Ray's dashboard and `top` name this process
        _bound_memory(self._job["share"])
        try:
            with limited(self._job["timeout"]):
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

        from benchmark.remote_store import open_store
        from sande import models

        workers = self._job["workers"] if stage.kind in self._job["grouped"] else 0
        model = stage.settings["model"]
        if model in models.MADE_HERE:
            models.prepare(model, open_store(self._job["store"]).models)
        self._fit(TorchTrainer, _train_loop, stage, workers, report_errors=workers > 0)

    def _evaluate(self, stage: Stage, store: Store) -> None:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of a star import there

        from benchmark import stages

        if stage.kind not in self._job["grouped"]:
            stages.evaluate(stage, store, _teller(self._job, stage), self._job["engine"])
            return
        # Here and not at a worker: it outlives each of them. Ray ends the group where one is lost, and nobody waits on.
        meeting = TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
        # Not a TorchTrainer, whose process group the trainings of metrics would take for theirs.
        at = meeting.host, meeting.port
        self._fit(DataParallelTrainer, _evaluation_loop, stage, self._job["workers"], meeting=at)

    def _fit(self, kind: Any, loop: Callable[..., Any], stage: Stage, workers: int, **more: Any) -> None:
        """Run the loop in Ray Train: in this process without workers, else in a group of them."""
        import ray.train

        per_worker = self._job["per_worker"]
        trainer = kind(
            loop,
            train_loop_config={**self._job, **more},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=per_worker.get("GPU", 0) > 0,
                resources_per_worker=per_worker if workers else None,
            ),
            run_config=ray.train.RunConfig(
                name=f"{stage.label.replace(' ', '-')}-{uuid.uuid4().hex[:8]}", storage_path=self.logdir
            ),
        )
        failure = trainer.fit().return_value
        if failure:
            raise StageError(*failure)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a stage's result is in the store."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a stage's result is in the store."""


def _train_loop(job: dict[str, Any]) -> tuple[str, str] | None:
    """One attack or defense on this worker.

    In a worker group an error is returned as text and kind, since Ray Train would wrap it in tracebacks of its own.
    """
    import ray.train
    import ray.train.huggingface.transformers

    from benchmark import stages, tracking
    from benchmark.remote_store import open_store

    logs.quiet()
    stage = Stage.from_json(job["stage"])
    rank = ray.train.get_context().get_world_rank()
    store, say = open_store(job["store"]), _speaker(stage)
    watched = tracking.reporting(job["report_to"] if rank == 0 else (), store.tracking, stage.label, say)

    def prepare(trainer: Trainer) -> Trainer:
        prepared: Trainer = ray.train.huggingface.transformers.prepare_trainer(watched(trainer))
        return prepared

    try:
        watch = Writer(job["status"], stage.key).watch if job["status"] else None
        stages.train(stage, store, prepare, say, rank, 60 * job["checkpoint_minutes"], job["sharding"], watch)
    except (UserError, NonFiniteError) as error:
        if not job["report_errors"]:
            raise
        return _line_and_kind(error)
    return None


def _evaluation_loop(job: dict[str, Any]) -> tuple[str, str] | None:
    """One evaluation on this worker of a group; an error, whichever worker's, is returned as text and kind."""
    import ray.train
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of a star import there

    from benchmark import stages
    from benchmark.remote_store import open_store
    from sande import crowd

    logs.quiet()
    stage = Stage.from_json(job["stage"])
    context, (host, port) = ray.train.get_context(), job["meeting"]
    rank = context.get_world_rank()
    meeting = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    try:
        with crowd.worker_group(meeting, rank, context.get_world_size(), _line_and_kind) as workers:
            stages.evaluate(stage, open_store(job["store"]), _teller(job, stage), job["engine"], workers)
    except crowd.WorkerGroupError as error:
        line, kind = error.description
        return line, kind
    return None


def _line_and_kind(error: Exception) -> tuple[str, str]:
    failure = classify(error)
    return str(failure), failure.kind


def _speaker(stage: Stage) -> Callable[[str], None]:
    return lambda line: print(f"{stage.label} {line}", flush=True)


def _teller(job: dict[str, Any], stage: Stage) -> Callable[[str], None]:
    """Return what receives the progress of an evaluation: the driver's view, or where it cannot see it, the log."""
    return Writer(job["status"], stage.key).say if job["status"] else _speaker(stage)


def _bound_memory(share: float) -> None:
    """Let this process hold no more of a GPU than its share, so that it runs out of memory and not its neighbours."""
    import torch

    from benchmark.memory import CONTEXT

    if torch.cuda.is_available():
        context = CONTEXT / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(share if share == 1.0 else share - context)
