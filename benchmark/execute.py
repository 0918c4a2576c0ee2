"""Stages on Ray. Tune is the scheduler: every stage is a trial, offered as soon as what it needs is done.

One warm worker process does stage after stage (a Tune class trainable with reused actors). Each attack and each defense
is a Ray Train run inside it: with one worker in Train's local mode, in that very process, which costs nothing; with two
or more as a worker group of its own. So is each evaluation with two or more workers, unless vLLM computes it.
"""

from __future__ import annotations

import datetime
import functools
import gc
import json
import logging
import os
import re
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two stages may well say the same line
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stdout.isatty() else "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a grid may name a model's folder from where the run began
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has no other way to switch its progress bars off
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Ray shows its token to a cluster that it joins only if told so before it is imported.
if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().exists()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
import ray.train
import ray.train.huggingface.transformers
import ray.train.torch
import torch
from ray import tune
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # of a star import there
from transformers import Trainer

from benchmark import deepspeed, interrupts, keeping, preflight, stages, tracking
from benchmark import plan as plans
from benchmark.cell import Kind, Resources
from benchmark.failures import (
    FULL_DISK,
    LOST_NODE,
    LOST_WORKER,
    OUT_OF_MEMORY,
    TIMEOUT,
    UNFINISHED,
    Failure,
    StageError,
    classify,
    interrupted,
    kind_of,
    limited,
    lost,
    out_of_memory,
)
from benchmark.jobs import shared_environment, unreachable
from benchmark.leases import POLL, THIS_RUN, Leases
from benchmark.logs import quiet
from benchmark.memory import CONTEXT, MOST, Peaks, peaks_of
from benchmark.plan import Plan
from benchmark.predict import note
from benchmark.remote_store import open_store
from benchmark.schedule import Offer, Queue, side_by_side, whole
from benchmark.stages import Stage, manifests_of
from benchmark.store import Store, full
from sande import crowd, engines, models
from sande.errors import NonFiniteError, UserError

# Tune would hand keys of a bucket to its workers, as settings that Ray writes into its logs. Nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}

# Present on the head node of every cluster, and on no other node: lets a trial that only waits for its own worker group
# hold no CPU, so that the group can always be placed.
HEAD = "node:__internal_head__"

# Tune keeps some 60 kB of each of its trials, so a Tuner does no more than so many; then the next one goes on.
TRIALS_OF_A_TUNER = 2000

# That a worker of an evaluation has with the others: what limits a stage is resources.timeout.
PATIENCE = datetime.timedelta(days=365)

# Times that a run makes anew what it finds damaged; a disk that damages more has to be seen to.
REPAIRS = 2

KILLED = Failure(
    "the worker process died (killed, or out of memory); run again, with smaller batches if it repeats", LOST_WORKER
)
GONE = Failure("the machine that it ran on was lost; run again when the cluster has others", LOST_NODE)


def run(
    plan: Plan,
    store: Store,
    resources: Resources,
    address: str | None,
    say: Callable[[str], None],
    keep: str = keeping.ALL,
) -> dict[str, str]:
    """Do all missing stages of a plan, and those again whose artifacts turn out to be damaged.

    Args:
        plan: what to do, in which order.
        store: where artifacts are; every node must see it.
        resources: of one stage.
        address: a running cluster; None starts Ray here (or joins the one a submitted job runs in).
        say: receives a line at the end of each stage.
        keep: which models stay, see `benchmark.keeping`.

    Returns:
        One line for each stage that failed, that could not run because one it needs failed, or that is not finished as
        the run was interrupted.

    Raises:
        UserError: the cluster cannot be reached, or has not what a stage asks for.
        KeyboardInterrupt: the user ended it before a stage began, or insisted.
    """
    if not plan.missing:
        return {}
    begin = time.perf_counter()
    for line in store.set_aside_damaged((stage.kind, key) for stage in plan.missing for key in stage.artifacts):
        say(line)
    with cluster(address):
        errors = _do(plan, store, resources, say, begin, keep)
        for _ in range(REPAIRS):
            repair = _repair(plan, errors, store)
            if not repair.missing or interrupted(errors):
                break
            say(f"a damaged artifact was found; {len(repair.missing)} stages are done again")
            kept = {key: error for key, error in errors.items() if key in repair.done}
            errors = kept | _do(repair, store, resources, say, time.perf_counter(), keep)
        return errors


def _repair(plan: Plan, errors: Mapping[str, str], store: Store) -> Plan:
    """What is left to do of a plan that was done with some errors: artifacts that are gone, and what failed for it."""
    now = plans.make(plan.cells, store) if errors else plan
    wanted = (set(plan.stages) - now.done - set(errors)) if errors else set()
    for key in errors:  # of two stages that failed, the one that needs the other comes behind it
        if wanted.intersection(plan.stages[key].needs):
            wanted.add(key)
    return Plan(plan.cells, plan.stages, frozenset(set(plan.stages) - wanted))


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray within the block: the one of a block around this, the cluster at `address`, or one that ends with the block.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS") or None if address is None else address  # a submitted job has it
    _check_reachable(address)
    try:
        with interrupts.held():
            _start(address)
        interrupts.take()
        yield
    finally:
        ray.shutdown()


def _start(address: str | None) -> None:
    try:
        ray.init(
            address=address or "local",  # None would also find a cluster that somebody else started on this machine
            logging_level=logging.ERROR,
            log_to_driver=True,
            runtime_env=_environment(address),
        )
    except Exception as error:  # Ray raises nothing narrower where it does not come up in time
        reason = str(error).strip().split("\n")[0]
        if address is None:
            raise UserError(f"Ray did not start here ({reason}); run again when the machine is less busy") from None
        raise UserError(
            f"no Ray cluster at '{address}' ({reason}); check --address, or leave it out to run here"
        ) from None


def _do(
    plan: Plan, store: Store, resources: Resources, say: Callable[[str], None], begin: float, keep: str = keeping.ALL
) -> dict[str, str]:
    folder, leases = store.scratch("tune"), Leases(store.board(), say)
    try:
        per_worker = allotment(resources)
        preflight.check_engine(resources.engine, per_worker.get("GPU", 0))
        preflight.check_sharding(resources)
        tracking.check(resources.report_to)
        slots = _at_once(resources, per_worker)
        peaks, share = _sharing(resources, per_worker, store)
        keeper = keeping.Keeper(plan.stages.values(), plan.done, store, keep)
        searcher = StageSearcher(Queue(plan, slots, share), store, peaks, say, begin, leases, resources.timeout, keeper)
        # By the user: Tune then returns early, without an exception.
        ended = UNFINISHED
        while not searcher.queue.over:
            begun = searcher.begun
            try:
                most = MOST if peaks else resources.side_by_side
                with interrupts.sigint_kept():
                    _tuner(searcher, store, resources, per_worker, slots * most, folder).fit()
                if searcher.left_to_others:
                    searcher.wait()
                elif searcher.begun - begun < TRIALS_OF_A_TUNER:
                    break
                gc.collect()  # the Tuner
            except OSError as error:
                if not full(error):
                    raise
                ended = Failure("not finished, the disk is full; run again to go on", FULL_DISK)
                break
            except RuntimeError as error:  # Tune ends where Ray kills its worker
                ended = Failure(f"not finished, {gave_up(error)}; run again to go on", kind_of(classify(error)))
                if not (out_of_memory(error) and searcher.killed()):
                    break
            except KeyboardInterrupt:  # beside Tune, or a second time
                break
        searcher.note_overhead()
        queue = searcher.queue
        unfinished = {stage.key for stage in plan.missing} - queue.done - set(queue.errors)
        return queue.errors | dict.fromkeys(unfinished, ended)
    finally:
        leases.close()
        shutil.rmtree(folder, ignore_errors=True)


def _sharing(
    resources: Resources, per_worker: Mapping[str, float], store: Store
) -> tuple[Peaks | None, Callable[[Stage], float]]:
    """How stages share a slot, and on GPUs the peaks of memory by which they do."""
    if resources.grouped("defend"):  # two ranks of a worker group may not be on one GPU
        return None, whole
    if not per_worker.get("GPU"):
        return None, side_by_side(resources.side_by_side)
    # A share that the user set is the user's; vLLM takes its memory at its start, whatever others were seen to need.
    if resources.gpus is not None or resources.engine != engines.BUILT_IN:
        return None, whole
    peaks = peaks_of(store)
    return peaks, peaks.share


def _tuner(
    searcher: StageSearcher,
    store: Store,
    resources: Resources,
    per_worker: dict[str, float],
    at_once: int,
    folder: Path,
) -> tune.Tuner:
    common = {
        "store": store.location,
        "workers": resources.workers,
        "grouped": [kind for kind in get_args(Kind) if resources.grouped(kind)],
        "sharding": deepspeed.sharding(resources),
        "per_worker": per_worker,
        "engine": resources.engine,
        "timeout": resources.timeout,
        "report_to": resources.report_to,
        "checkpoint_minutes": resources.checkpoint_minutes,
    }
    return tune.Tuner(
        tune.with_resources(StageTrial, functools.partial(_trial_resources, resources)),
        param_space=common,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=Witness(searcher.witnessed),
            trial_name_creator=lambda trial: Stage.from_json(trial.config["stage"]).label,
            trial_dirname_creator=lambda trial: trial.trial_id,  # a label may be too long for one, or have a slash
            num_samples=TRIALS_OF_A_TUNER,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=run_config(folder),
    )


def run_config(folder: Path) -> tune.RunConfig:
    """Of a Tuner that works below this folder, in silence; what failed is ours to try again."""
    return tune.RunConfig(
        name=uuid.uuid4().hex[:8],
        storage_path=str(folder),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
    )


class StageSearcher(Searcher):
    """Offers Tune what the queue offers, and tells the queue and the user how it ended."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        peaks: Peaks | None,
        say: Callable[[str], None],
        begin: float,
        leases: Leases,
        timeout: float | None = None,
        keeper: keeping.Keeper | None = None,
    ) -> None:
        super().__init__(metric="ok", mode="max")
        self.queue = queue
        self.begun = 0  # trials
        self.witnessed: dict[str, str] = {}  # by trial, what Ray said of its process that is gone, see `Witness`
        self._store = store
        self._peaks = peaks
        self._timeout = timeout  # seconds of a stage
        self._running: dict[str, tuple[Offer, float]] = {}
        self._say = say
        self._begin = begin  # of the run
        self._beside: list[float] = []  # for each stage that is done, seconds beside its own
        self._leases = leases
        self._keeper = keeper
        self._waiting: set[str] = set()  # keys of stages that another run was seen to do
        self._looked = begin  # at leases of others
        self._offer: Offer | None = None  # the next one, found beside Tune
        self.left_to_others = False  # all that could start

    def suggest(self, trial_id: str) -> Mapping[str, Any] | str | None:
        """The next stage as a trial's config, None while none can start, FINISHED when none is left here."""
        offer, self._offer = self._offer or self._next(), None
        if offer is None:
            # Tune's idle processes hold CPUs, which another run may need for what is waited for here: let them end.
            self.left_to_others = not self._running and not self.queue.over
            return Searcher.FINISHED if self.queue.over or self.left_to_others else None
        self.begun += 1
        self._running[trial_id] = (offer, time.perf_counter())
        return {"stage": offer.stage.to_json(), "share": offer.share}

    def wait(self) -> None:
        """Until a stage that was left to others can start here, or all are done."""
        self.left_to_others = False
        while self._offer is None and not self.queue.over:
            time.sleep(POLL)
            self._offer = self._next()

    def _next(self) -> Offer | None:
        """The next stage that no other run is doing or has done; its leases are this run's."""
        if time.perf_counter() - self._looked > POLL:
            self.queue.resume()
            self._looked = time.perf_counter()
        while offer := self.queue.next():
            stage = offer.stage
            artifacts = [(stage.kind, key) for key in stage.artifacts]
            holder = self._leases.take(stage.key, artifacts)
            if all(self._store.has(*artifact) for artifact in artifacts):
                self._leases.release(stage.key)
                self.queue.ended(stage.key)
                self._say(f"[{self.queue.finished}/{self.queue.total}] {stage.label}: done meanwhile")
            elif holder is None:
                return offer
            else:
                self.queue.defer(stage.key)
                if stage.key not in self._waiting and holder != THIS_RUN:
                    self._say(f"{stage.label}: left to {holder}, which is doing it")
                self._waiting.add(stage.key)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Notes how a stage ended and says it in one line."""
        if error or not result:
            self._killed(trial_id)
        else:
            said = result.get("error")
            self._ended(trial_id, Failure(said, result["failure"]) if said else None)

    def killed(self) -> bool:
        """Notes that Ray ended a worker for want of memory, and Tune with all that ran; whether that was anything."""
        lost = list(self._running)
        for trial_id in lost:
            self._killed(trial_id)
        return bool(lost)

    def _killed(self, trial_id: str) -> None:
        took = time.perf_counter() - self._running[trial_id][1]
        if self.witnessed.pop(trial_id, "") == LOST_NODE:
            self._ended(trial_id, GONE)
        elif self._timeout and took >= self._timeout:  # only then it ends itself
            line = f"it took longer than resources.timeout, {self._timeout:g} s, and was stopped"
            self._ended(trial_id, Failure(line, TIMEOUT))
        else:
            self._ended(trial_id, KILLED)

    def _ended(self, trial_id: str, error: Failure | None) -> None:
        offer, begin = self._running.pop(trial_id)
        stage, kind = offer.stage, error.kind if error else ""
        # A process that died beside others most likely did so for want of memory.
        short = kind == OUT_OF_MEMORY or (kind == LOST_WORKER and self.queue.crowded(stage.key))
        again = self.queue.ended(stage.key, error, short, lost=kind in (LOST_WORKER, LOST_NODE))
        if not again:
            self._leases.release(stage.key)
        told = f"[{self.queue.finished}/{self.queue.total}] {stage.label}"
        if again:
            self._say(f"{told} {'the worker process died' if kind == LOST_WORKER else kind}; {again}")
        elif error:
            self._say(f"{told} FAILED: {error}")
        else:
            now = time.perf_counter()
            self._say(f"{told}: done in {now - begin:.1f} s")
            self._learn(manifests_of(stage, self._store), now - (begin if self._beside else self._begin))
            if self._keeper:
                self._keeper.ended(stage)

    def _learn(self, manifests: list[dict[str, Any]], took: float) -> None:
        """From a stage that is done; nothing, while a file system shared by several machines does not show it here."""
        if manifests:
            self._beside.append(max(0.0, took - sum(manifest["seconds"] for manifest in manifests)))
        for manifest in manifests:
            if self._peaks:
                self._peaks.learn(manifest)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its settings down, and nobody reads them; leases have a lock, which cannot be."""
        return {}

    def note_overhead(self) -> None:
        """Keeps for predictions what the run took beside its stages."""
        if self._beside:
            start, *later = self._beside
            note(self._store, start=start, **({"stage": statistics.median(later)} if later else {}))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store knows what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the store knows what is done."""


class Witness(FIFOScheduler):
    """Notes for the searcher what Ray said of a trial's end: Tune itself only tells it that there was an error."""

    def __init__(self, witnessed: dict[str, str]) -> None:
        super().__init__()
        self._witnessed = witnessed  # and not the searcher, since Tune pickles its scheduler

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Comes before the searcher's `on_trial_complete`."""
        self._witnessed[trial.trial_id] = lost(trial.get_pickled_error() or RuntimeError("no word"))


class StageTrial(tune.Trainable):
    """A trial that does one stage; the process stays for the next one."""

    def setup(self, config: dict[str, Any]) -> None:
        """First stage of this process."""
        quiet()
        self._job = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Next stage of this process."""
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        """The whole stage."""
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
            if torch.cuda.is_available():  # this process stays, and its neighbours on the GPU need what it holds
                gc.collect()
                torch.cuda.empty_cache()
        return {"ok": 1, "done": True}

    def _train(self, stage: Stage) -> None:
        workers = self._job["workers"] if stage.kind in self._job["grouped"] else 0
        model = stage.settings["model"]
        if model in models.MADE_HERE:
            models.prepare(model, open_store(self._job["store"]).models)
        self._fit(ray.train.torch.TorchTrainer, _train_loop, stage, workers, report_errors=workers > 0)

    def _evaluate(self, stage: Stage, store: Store) -> None:
        if stage.kind not in self._job["grouped"]:
            stages.evaluate(stage, store, _speaker(stage), self._job["engine"], rank=0)
            return
        # Here and not at a worker: it outlives each of them. Ray ends the group where one is lost, and nobody waits on.
        meeting = TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
        # Not a TorchTrainer, whose process group the trainings of metrics would take for theirs.
        at = meeting.host, meeting.port
        self._fit(DataParallelTrainer, _evaluation_loop, stage, self._job["workers"], meeting=at)

    def _fit(self, kind: Any, loop: Callable[..., Any], stage: Stage, workers: int, **more: Any) -> None:
        """Run the loop in Ray Train: in this process without workers, else in a group of them."""
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
    quiet()
    stage = Stage.from_json(job["stage"])
    rank = ray.train.get_context().get_world_rank()
    store, say = open_store(job["store"]), _speaker(stage)
    watched = tracking.reporting(job["report_to"] if rank == 0 else (), store.tracking, stage.label, say)

    def prepare(trainer: Trainer) -> Trainer:
        prepared: Trainer = ray.train.huggingface.transformers.prepare_trainer(watched(trainer))
        return prepared

    try:
        stages.train(stage, store, prepare, say, rank, 60 * job["checkpoint_minutes"], job["sharding"])
    except (UserError, NonFiniteError) as error:
        if not job["report_errors"]:
            raise
        return _line_and_kind(error)
    return None


def _evaluation_loop(job: dict[str, Any]) -> tuple[str, str] | None:
    """One evaluation on this worker of a group; an error, whichever worker's, is returned as text and kind."""
    quiet()
    stage = Stage.from_json(job["stage"])
    context, (host, port) = ray.train.get_context(), job["meeting"]
    rank = context.get_world_rank()
    meeting = TCPStore(host, port, is_master=False, timeout=PATIENCE)
    try:
        with crowd.together(meeting, rank, context.get_world_size(), _line_and_kind):
            stages.evaluate(stage, open_store(job["store"]), _speaker(stage), job["engine"], rank)
    except crowd.CrowdError as error:
        line, kind = error.told
        return line, kind
    return None


def _line_and_kind(error: Exception) -> tuple[str, str]:
    failure = classify(error)
    return str(failure), failure.kind


def _speaker(stage: Stage) -> Callable[[str], None]:
    return lambda line: print(f"{stage.label} {line}", flush=True)


def _bound_memory(share: float) -> None:
    """Let this process hold no more of a GPU than its share, so that it runs out of memory and not its neighbours."""
    if torch.cuda.is_available():
        context = CONTEXT / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(share if share == 1.0 else share - context)


def gave_up(error: RuntimeError) -> str:
    """Why Tune did not go on: it ends where Ray kills its worker."""
    return "memory ran out and Ray ended the worker" if out_of_memory(error) else classify(error)


def _check_reachable(address: str | None) -> None:
    """Refuse an address where nobody listens.

    Raises:
        UserError: nobody listens at `[ray://]host:port`, or the address is empty.
    """
    if address is not None and not address.strip():
        raise UserError("--address is empty; give host:port of a Ray cluster, or leave it out to run here")
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)", address or "")
    if not found:
        return
    if reason := unreachable(found["host"], int(found["port"])):
        raise UserError(f"no Ray cluster at '{address}' ({reason}); check --address, or leave it out to run here")


def allotment(resources: Resources) -> dict[str, float]:
    """CPUs and GPUs of one worker, in Ray's words.

    Raises:
        UserError: no node has as many.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max(int(node.get(name, 0)) for node in nodes) for name in ("CPU", "GPU"))
    gpu_share = resources.gpus if resources.gpus is not None else float(min(1, gpus))
    cpu_share = resources.cpus or max(1, cpus // max(1, gpus) // (resources.workers if not gpus else 1))
    if cpu_share > cpus or gpu_share > gpus:
        raise UserError(
            f"resources asks for {cpu_share} CPUs and {gpu_share:g} GPUs a worker, but the largest node has {cpus} and "
            f"{gpus}; lower resources.cpus or resources.gpus"
        )
    return {"CPU": float(cpu_share)} | ({"GPU": gpu_share} if gpu_share else {})


def _trial_resources(resources: Resources, job: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What the process of a trial holds: its share of what a worker gets, unless it waits for a group of workers."""
    if resources.grouped(Stage.from_json(job["stage"]).kind):
        return tune.PlacementGroupFactory([{HEAD: 0.001}])
    held = {name: amount * job["share"] for name, amount in job["per_worker"].items()}
    if resources.cpus is not None and "GPU" in held:  # of a GPU it has a share, of CPUs what the user said
        held["CPU"] = float(resources.cpus)
    return tune.PlacementGroupFactory([held])


def _at_once(resources: Resources, per_worker: dict[str, float]) -> int:
    """How many stages the cluster holds at a time; a worker group that cannot be placed would wait without an error."""
    total = ray.cluster_resources()
    fitting = min(int(total.get(name, 0) // (share * resources.workers)) for name, share in per_worker.items())
    if fitting < 1:
        raise UserError(
            f"resources asks for {resources.workers} workers of {per_worker}, more than the cluster has; lower them"
        )
    return fitting


def _environment(address: str | None) -> dict[str, Any] | None:
    """What workers on other machines need to know; local ones inherit it, and a job's have what it was given."""
    given = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env", {}).get("env_vars", {})
    passed = {name: value for name, value in shared_environment().items() if name not in given}
    return {"env_vars": passed} if address and passed else None
