"""Stages on Ray. Tune is the scheduler: every stage is a trial, offered as soon as what it needs is done.

One warm worker process does stage after stage (a Tune class trainable with reused actors). Each attack and each defense
is a Ray Train run inside it: with one worker in Train's local mode, in that very process, which costs nothing; with two
or more as a worker group of its own. So is each evaluation with two or more workers, unless vLLM computes it.
"""

from __future__ import annotations

import functools
import gc
import shutil
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from benchmark import deepspeed, interrupts, keeping, preflight, tracking
from benchmark import plan as plans
from benchmark.cell import Kind, Resources
from benchmark.cluster import allotment, at_once, cluster
from benchmark.costs import note
from benchmark.failures import (
    FULL_DISK,
    LOST_NODE,
    LOST_WORKER,
    OUT_OF_MEMORY,
    TIMEOUT,
    UNFINISHED,
    Failure,
    classify,
    interrupted,
    kind_of,
    lost,
    out_of_memory,
)
from benchmark.leases import POLL, THIS_RUN, Leases
from benchmark.memory import MOST, Peaks, peaks_of
from benchmark.plan import Plan
from benchmark.progress import Progress
from benchmark.remote import is_uri
from benchmark.schedule import Offer, Queue, side_by_side, whole
from benchmark.stage_trial import StageTrial
from benchmark.stages import Stage, manifests_of
from benchmark.store import Store, full
from sande import engines

# Tune would hand keys of a bucket to its workers, as settings that Ray writes into its logs. Nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}

# Present on the head node of every cluster, and on no other node: lets a trial that only waits for its own worker group
# hold no CPU, so that the group can always be placed.
HEAD = "node:__internal_head__"

# Tune keeps some 60 kB of each of its trials, so a Tuner does no more than so many; then the next one goes on.
TRIALS_OF_A_TUNER = 2000

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
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Do all missing stages of a plan, and those again whose artifacts turn out to be damaged.

    Args:
        plan: what to do, in which order.
        store: where artifacts are; every node must see it.
        resources: of one stage.
        address: a running cluster; None starts Ray here (or joins the one a submitted job runs in).
        say: receives a line at the end of each stage.
        keep: which models stay, see `benchmark.keeping`.
        progress: is told what runs.
        check: looks for the user's mistakes, in a thread, while the first worker starts; until it ends nothing is trained.

    Returns:
        One line for each stage that failed, that could not run because one it needs failed, or that is not finished as
        the run was interrupted.

    Raises:
        UserError: the cluster cannot be reached, or has not what a stage asks for; or what `check` raises.
        KeyboardInterrupt: the user ended it before a stage began, or insisted.
    """
    if not plan.missing:
        return {}
    begin = time.perf_counter()
    progress = progress or Progress(grid="")
    progress.phase = "starting Ray"
    for line in store.set_aside_damaged((stage.kind, key) for stage in plan.missing for key in stage.artifacts):
        say(line)
    with cluster(address, resources.grouped("defend") or resources.grouped("evaluate")):
        progress.phase = "checking the data, loading libraries"
        checked = _beside(check)  # not before: Ray's own processes take both cores of a small machine
        errors = _do(plan, store, resources, say, begin, keep, progress, checked)
        for _ in range(REPAIRS):
            repair = _repair(plan, errors, store)
            if not repair.missing or interrupted(errors):
                break
            say(f"a damaged artifact was found; {len(repair.missing)} stages are done again")
            kept = {key: error for key, error in errors.items() if key in repair.done}
            errors = kept | _do(repair, store, resources, say, time.perf_counter(), keep, progress)
        return errors


def _beside(work: Callable[[], None]) -> Callable[[], None]:
    """Start work in a thread; return a function that waits for its end, and raises what it raised."""
    raised: list[Exception] = []

    def caught() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=caught, daemon=True)  # an interrupted run does not wait for it
    thread.start()

    def ended() -> None:
        thread.join()
        if raised:
            raise raised[0]

    return ended


def _repair(plan: Plan, errors: Mapping[str, str], store: Store) -> Plan:
    """What is left to do of a plan that was done with some errors: artifacts that are gone, and what failed for it."""
    now = plans.make(plan.cells, store) if errors else plan
    wanted = (set(plan.stages) - now.done - set(errors)) if errors else set()
    for key in errors:  # of two stages that failed, the one that needs the other comes behind it
        if wanted.intersection(plan.stages[key].needs):
            wanted.add(key)
    return Plan(plan.cells, plan.stages, frozenset(set(plan.stages) - wanted))


def _do(
    plan: Plan,
    store: Store,
    resources: Resources,
    say: Callable[[str], None],
    begin: float,
    keep: str = keeping.ALL,
    progress: Progress | None = None,
    checked: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    folder, leases = store.scratch("tune"), Leases(store.board(), say)
    progress = progress or Progress(grid="")
    status = None if is_uri(store.location) else folder / "status"
    try:
        per_worker = allotment(resources)
        preflight.check_engine(resources.engine, per_worker.get("GPU", 0))
        preflight.check_sharding(resources)
        tracking.check(resources.report_to)
        slots = at_once(resources, per_worker)
        peaks, share = _sharing(resources, per_worker, store)
        keeper = keeping.Keeper(plan.stages.values(), plan.done, store, keep)
        if status:
            status.mkdir()
        progress.begin(plan.missing)
        progress.folder = status
        queue = Queue(plan, slots, share)
        searcher = StageSearcher(queue, store, peaks, say, begin, leases, resources.timeout, keeper, progress)
        # By the user: Tune then returns early, without an exception.
        ended = UNFINISHED
        while not searcher.queue.over:
            begun = searcher.begun
            try:
                most = MOST if peaks else resources.side_by_side
                with interrupts.sigint_kept():
                    _tuner(searcher, store, resources, per_worker, slots * most, folder, status, checked).fit()
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
                checked()
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
    most: int,
    folder: Path,
    status: Path | None,
    checked: Callable[[], None],
) -> tune.Tuner:
    common = {
        "store": store.location,
        "status": str(status) if status else None,
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
            max_concurrent_trials=most,
            reuse_actors=True,
        ),
        run_config=run_config(folder, [Gate(checked)]),
    )


def run_config(folder: Path, callbacks: Sequence[tune.Callback] = ()) -> tune.RunConfig:
    """Of a Tuner that works below this folder, in silence; what failed is ours to try again."""
    return tune.RunConfig(
        name=uuid.uuid4().hex[:8],
        storage_path=str(folder),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        callbacks=list(callbacks),
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
        progress: Progress | None = None,
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
        self._progress = progress or Progress(grid="")
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
        self._progress.started(offer.stage)
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
                self._progress.ended(stage)
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
        self._progress.ended(stage, again=bool(again))
        self._progress.dropped(self.queue.errors)
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


class Gate(tune.Callback):
    """Holds up the first trial until the user's mistakes have been looked for; its process loads libraries by then."""

    def __init__(self, checked: Callable[[], None]) -> None:
        self._checked = checked

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its settings down, and nobody reads them; a thread cannot be."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Comes when a trial's process is there, and before it works."""
        self._checked()


class Witness(FIFOScheduler):
    """Notes for the searcher what Ray said of a trial's end: Tune itself only tells it that there was an error."""

    def __init__(self, witnessed: dict[str, str]) -> None:
        super().__init__()
        self._witnessed = witnessed  # and not the searcher, since Tune pickles its scheduler

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Comes before the searcher's `on_trial_complete`."""
        self._witnessed[trial.trial_id] = lost(trial.get_pickled_error() or RuntimeError("no word"))


def _trial_resources(resources: Resources, job: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What the process of a trial holds: its share of what a worker gets, unless it waits for a group of workers."""
    if resources.grouped(Stage.from_json(job["stage"]).kind):
        return tune.PlacementGroupFactory([{HEAD: 0.001}])
    held = {name: amount * job["share"] for name, amount in job["per_worker"].items()}
    if resources.cpus is not None and "GPU" in held:  # of a GPU it has a share, of CPUs what the user said
        held["CPU"] = float(resources.cpus)
    return tune.PlacementGroupFactory([held])


def gave_up(error: RuntimeError) -> str:
    """Why Tune did not go on: it ends where Ray kills its worker."""
    return "memory ran out and Ray ended the worker" if out_of_memory(error) else classify(error)
