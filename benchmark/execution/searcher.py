"""Feed Tune with the stages of a plan, and turn the end of each trial into a result or a failure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from benchmark.execution import cluster
from benchmark.execution.autoscaling import MOST, Nodes
from benchmark.execution.progress import Progress
from benchmark.forecast.measured import keep_overhead
from benchmark.io.units import counted
from benchmark.plan import retention
from benchmark.plan.failures import LOST_NODE, LOST_WORKER, OUT_OF_MEMORY, TIMEOUT, Failure, lost_component
from benchmark.plan.memory import Peaks
from benchmark.plan.schedule import Assignment, Queue
from benchmark.plan.stage import Stage, manifests_of
from benchmark.store.errors import GoneError
from benchmark.store.leases import POLL, THIS_RUN, Leases
from benchmark.store.protocol import Store
from sande.errors import UserError

KILLED = Failure(
    "the worker process died (killed, or out of memory); run again, with smaller batches if it happens again",
    LOST_WORKER,
)
_LOST: Mapping[str, Literal["process", "node"]] = {LOST_WORKER: "process", LOST_NODE: "node"}
GONE = Failure("its machine was lost; run again when the cluster has others", LOST_NODE)


class StageSearcher(Searcher):
    """Offer Tune the stages of the queue; report their ends to the queue and to the user."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        peaks: Peaks | None,
        say: Callable[[str], None],
        begin: float,
        leases: Leases,
        timeout: Callable[[Stage], float | None] = lambda stage: None,
        keeper: retention.Keeper | None = None,
        progress: Progress | None = None,
        sort: Callable[[Stage], int] = lambda stage: 0,
        nodes: Nodes | None = None,
    ) -> None:
        super().__init__(metric="ok", mode="max")
        self.queue = queue
        self.begun = 0  # trials
        self.witnessed: dict[str, str] = {}  # by trial, how Ray says that its process was lost, see `ErrorRecorder`
        self._store = store
        self._peaks = peaks
        self._timeout = timeout  # seconds of a stage
        self._sort = sort  # number of a stage's settings among those of the Tuner
        self._running: dict[str, tuple[Assignment, float]] = {}
        self._say = say
        self._begin = begin  # of the run
        self._beside: list[float] = []  # for each stage that is done, seconds on top of its own
        self._leases = leases
        self._keeper = keeper
        self._progress = progress or Progress(grid="")
        self._nodes = nodes  # None where none come or go
        self._a_slot = self._progress.at_once / max(1, queue.slots)  # stages
        self._waiting: set[str] = set()  # keys of stages that another run does
        self._looked = begin  # at leases of others
        self._offer: Assignment | None = None  # the next one, found between two Tuners
        self.left_to_others = False  # all that could start
        self.store_gone = False  # removed while it was used

    @property
    def metered(self) -> str:
        """Return the name of the grid whose metrics are recorded; empty where none are."""
        return self._progress.metrics.grid if self._progress.metrics else ""

    def suggest(self, trial_id: str) -> Mapping[str, Any] | str | None:
        """Return the next stage as a trial's config, None while none can start, FINISHED when none is left here."""
        offer, self._offer = None if self.store_gone else self._offer or self._next(), None
        if offer is None:
            # Tune's idle processes hold CPUs, which another run may need for the stages that this one waits for.
            over = self.queue.over or self.store_gone
            self.left_to_others = not self._running and not over
            return Searcher.FINISHED if over or self.left_to_others else None
        self.begun += 1
        self._running[trial_id] = (offer, time.perf_counter())
        self._progress.started(offer.stage)
        more = {"share": offer.share, "sort": self._sort(offer.stage), "filled": offer.filled}
        return {"stage": offer.stage.to_json(), **more}

    def wait(self) -> None:
        """Wait until a stage that was left to another run can start here, or all are done."""
        self.left_to_others = False
        while self._offer is None and not self.queue.over:
            time.sleep(POLL)
            self._offer = self._next()

    def _next(self) -> Assignment | None:
        """Return the next stage that no other run is doing or has done, with its leases acquired."""
        due = time.perf_counter() - self._looked > POLL
        if due:
            self.queue.resume()
            self._resize()
            self._looked = time.perf_counter()
        while offer := self.queue.next():
            stage = offer.stage
            artifacts = [(stage.kind, key) for key in stage.artifacts]
            holder = self._leases.acquire(stage.key, artifacts)
            if all(self._store.has(*artifact) for artifact in artifacts) or self._superseded(stage):
                self._leases.release(stage.key)
                self.queue.ended(stage.key)
                self._progress.ended(stage)
                self._say(f"[{self.queue.finished}/{self.queue.total}] {stage.label}: done by another run")
            elif holder is None:
                return offer
            else:
                self.queue.defer(stage.key)
                if stage.key not in self._waiting and holder != THIS_RUN:
                    self._say(f"{stage.label}: {holder} is doing it")
                self._waiting.add(stage.key)
        if due and self._nodes:  # now that all free slots are taken
            self._nodes.ask(self.queue.lacking(MOST))
        return None

    def _resize(self) -> None:
        """Note nodes that came or went."""
        slots = self._nodes.slots() if self._nodes else self.queue.slots
        if slots != self.queue.slots:
            self._say(f"the cluster has room for {counted(slots, 'stage')} at a time, {self.queue.slots} before")
            self.queue.resize(slots)
            self._progress.at_once = max(1, round(slots * self._a_slot))

    def _superseded(self, stage: Stage) -> bool:
        """Return whether another run did, and then dropped, a part: all defenses that need it are done."""
        readers = self.queue.readers(stage.key) if stage.kind == "part" else []
        return bool(readers) and all(self._store.has(reader.kind, reader.key) for reader in readers)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record how a stage ended, and print it in one line."""
        if error or not result:
            self._killed(trial_id)
        else:
            error_line = result.get("error")
            self._ended(trial_id, Failure(error_line, result["failure"]) if error_line else None)

    def killed(self) -> bool:
        """Record that Ray killed a worker for lack of memory, which ended all trials; return whether any ran."""
        lost = list(self._running)
        for trial_id in lost:
            self._killed(trial_id)
        return bool(lost)

    def put_back(self) -> None:
        """Return running stages to the queue as if they had not begun; Ray itself ended, through no fault of theirs."""
        for offer, _ in self._running.values():
            self.queue.defer(offer.stage.key)
            self._progress.ended(offer.stage, again=True)
            self._leases.release(offer.stage.key)
        self.queue.resume()
        self._running.clear()
        self.witnessed.clear()

    def _killed(self, trial_id: str) -> None:
        offer, begin = self._running[trial_id]
        took, limit = time.perf_counter() - begin, self._timeout(offer.stage)
        if self.witnessed.pop(trial_id, "") == LOST_NODE:
            self._ended(trial_id, GONE)
        elif limit and took >= limit:  # it ends itself only then
            line = f"it took longer than resources.timeout, {limit:g} s, and was stopped"
            self._ended(trial_id, Failure(line, TIMEOUT))
        else:
            self._ended(trial_id, KILLED)

    def _ended(self, trial_id: str, error: Failure | None) -> None:
        if error and error.kind == LOST_WORKER and self._nodes and self._nodes.one_died():
            error = GONE
        offer, begin = self._running.pop(trial_id)
        stage, kind = offer.stage, error.kind if error else ""
        if error and self._is_store_gone():  # the error follows from that, whatever it says
            self.store_gone = True
            return
        if kind == LOST_NODE:
            self._resize()  # now, since the next offer must not count on that node
        # A process that died while others ran most likely lacked memory.
        short = kind == OUT_OF_MEMORY or (kind == LOST_WORKER and self.queue.crowded(stage.key))
        again = self.queue.ended(stage.key, error, short, _LOST.get(kind, ""))
        self._progress.ended(stage, again=bool(again), failed=error is not None)
        self._progress.dropped(self.queue.errors)
        if not again:
            self._leases.release(stage.key)
        line = f"[{self.queue.finished}/{self.queue.total}] {stage.label}"
        if again:
            self._say(f"{line} {'the worker process died' if kind == LOST_WORKER else kind}; {again}")
        elif error:
            self._say(f"{line} FAILED: {error}")
        else:
            now = time.perf_counter()
            self._say(f"{line}: done in {now - begin:.1f} s")
            self._learn(manifests_of(stage, self._store), now - (begin if self._beside else self._begin))
            if self._keeper:
                self._keeper.ended(stage)

    def _is_store_gone(self) -> bool:
        try:
            self._store.check_there()
        except GoneError:
            return True
        except UserError:  # it does not answer
            return False
        return False

    def _learn(self, manifests: list[dict[str, Any]], took: float) -> None:
        """Learn from a stage that is done; nothing where a shared file system does not show its manifests here yet."""
        if manifests:
            self._beside.append(max(0.0, took - sum(manifest["seconds"] for manifest in manifests)))
        for manifest in manifests:
            if self._peaks:
                self._peaks.learn(manifest)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher, which is never read again, and a lock cannot be pickled."""
        return {}

    def note_overhead(self) -> None:
        """Store for predictions the seconds that the run took on top of its stages."""
        if self._beside:
            start, *later = self._beside
            keep_overhead(self._store, start=start, **({"stage": statistics.median(later)} if later else {}))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store knows what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store knows what is done."""


class Gate(tune.Callback):
    """Hold the first trial until the data is checked; its process loads libraries meanwhile."""

    def __init__(self, checked: Callable[[], None]) -> None:
        self._checked = checked

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks, which are never read again, and a thread cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Wait for the check, after a trial's process has started and before it works."""
        self._checked()


class Pulse(tune.Callback):
    """End Tune where Ray itself ended; Tune would wait for it."""

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raise what the watch of Ray's processes noticed; Tune calls this some ten times a second."""
        cluster.check()


class ErrorRecorder(FIFOScheduler):
    """Record for the searcher why a trial ended: Tune itself only reports that there was an error."""

    def __init__(self, witnessed: dict[str, str]) -> None:
        super().__init__()
        self._witnessed = witnessed  # and not the searcher, since Tune pickles its scheduler

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Record the error, before Tune calls the searcher's `on_trial_complete`."""
        self._witnessed[trial.trial_id] = lost_component(trial.get_pickled_error() or RuntimeError("no word"))
