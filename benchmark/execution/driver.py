"""Run the stages of a plan on Ray. Tune schedules them: each is a trial, offered once the stages it needs are done.

A warm worker process does one stage after another (a Tune class trainable with reused actors). Each attack and each
defense is a Ray Train run in it: with one worker in Train's local mode, in the same process, which costs nothing; with
two or more in a worker group of its own. So is an evaluation by two or more workers, unless vLLM computes it.
"""

from __future__ import annotations

import functools
import gc
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ray import tune

from benchmark.execution import deepspeed, fitting, ray_env, signals
from benchmark.execution.autoscaling import Nodes, await_first
from benchmark.execution.cluster import cluster, joined, start_again
from benchmark.execution.metrics import StageMetrics
from benchmark.execution.nodes import check as check_nodes
from benchmark.execution.progress import Progress
from benchmark.execution.room import Room, room_of
from benchmark.execution.searcher import ErrorRecorder, Gate, Pulse, StageSearcher
from benchmark.execution.trial import StageJob, StageTrial, TrialSettings
from benchmark.execution.watch import RayEndedError
from benchmark.grid.keys import library_versions
from benchmark.grid.resources import TENSOR, Kind, Resources, ResourcesByStage
from benchmark.grid.stage_resources import distinct
from benchmark.io.files import is_disk_full
from benchmark.io.remote import is_uri
from benchmark.io.units import counted
from benchmark.plan import retention
from benchmark.plan.failures import (
    FULL_DISK,
    LOST_NODE,
    UNFINISHED,
    Failure,
    classify,
    interrupted,
    kind_of,
    out_of_memory,
)
from benchmark.plan.memory import MOST, Peaks, peaks_of
from benchmark.plan.plan import Plan, make_plan
from benchmark.plan.schedule import Queue, side_by_side
from benchmark.plan.stage import Stage
from benchmark.store.leases import Leases
from benchmark.store.protocol import Store
from sande.inference import vllm

# Tune keeps some 60 kB for each of its trials, so a Tuner does at most this many, and the next one continues.
TRIALS_OF_A_TUNER = 2000

# How often a run repeats stages whose artifacts it finds damaged; a disk that damages more needs attention.
REPAIRS = 2


def run(
    plan: Plan,
    store: Store,
    resources: ResourcesByStage,
    address: str | None,
    say: Callable[[str], None],
    keep: str = retention.ALL,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Do all missing stages of a plan, and repeat those whose artifacts turn out to be damaged.

    Args:
        plan: what to do, in which order.
        store: where artifacts are; every node must see it.
        resources: of each stage.
        address: a running cluster; None starts Ray here (or joins the one a submitted job runs in).
        say: receives a line at the end of each stage.
        keep: which models stay, see `benchmark.plan.retention`.
        progress: receives which stages run.
        check: looks for the user's mistakes in a thread while the first worker starts; it ends before any training. So
            do the looks at the other nodes of a cluster.

    Returns:
        By stage key, one line for each stage that failed, that could not run because one it needs failed, or that is
        not finished since the run was interrupted.

    Raises:
        UserError: the cluster cannot be reached, or lacks what a stage asks for; or what `check` raises.
        KeyboardInterrupt: the user ended it before a stage began, or pressed Ctrl-C twice.
    """
    if not plan.missing:
        return {}
    begin = time.perf_counter()
    progress = progress or Progress(grid="")
    progress.phase = "starting Ray"
    for line in store.quarantine_damaged((stage.kind, key) for stage in plan.missing for key in stage.artifacts):
        say(line)
    with cluster(address, any(resources.of(stage).grouped(stage.kind) for stage in plan.missing)):
        progress.phase = "checking the data, loading libraries"
        grows = joined(address)
        if grows:
            progress.metrics = StageMetrics(progress.grid)
        # Only now: Ray's own processes take both cores of a small machine as they start.
        fits = functools.partial(fitting.check, plan.missing, resources, fitting.here(store.models))
        checked = _beside(lambda: _each(check, functools.partial(check_nodes, plan.cells, store), fits))
        errors = _do(plan, store, resources, say, begin, keep, progress, checked, grows)
        for _ in range(REPAIRS):
            repair = _repair(plan, errors, store)
            if not repair.missing or interrupted(errors):
                break
            say(f"found a damaged artifact; {counted(len(repair.missing), 'stage')} to do again")
            kept = {key: error for key, error in errors.items() if key in repair.done}
            errors = kept | _do(repair, store, resources, say, time.perf_counter(), keep, progress, grows=grows)
        return errors


def _each(*looks: Callable[[], None]) -> None:
    for look in looks:
        look()


def _beside(work: Callable[[], None]) -> Callable[[], None]:
    """Start work in a thread; return a function that waits for its end and raises its error."""
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
    """Return the plan of a repair: the stages whose artifacts are gone, and those that failed for it."""
    now = make_plan(plan.cells, store) if errors else plan
    wanted = (set(plan.stages) - now.done - set(errors)) if errors else set()
    for key in errors:  # of two stages that failed, the one that needs the other comes later
        if wanted.intersection(plan.stages[key].needs):
            wanted.add(key)
    return Plan(plan.cells, plan.stages, frozenset(set(plan.stages) - wanted))


def _do(
    plan: Plan,
    store: Store,
    resources: ResourcesByStage,
    say: Callable[[str], None],
    begin: float,
    keep: str = retention.ALL,
    progress: Progress | None = None,
    checked: Callable[[], None] = lambda: None,
    grows: bool = False,
) -> dict[str, str]:
    folder, leases = store.scratch("tune"), Leases(store.lease_backend(), say)
    progress = progress or Progress(grid="")
    status = None if is_uri(store.location) else folder / "status"
    nodes = None
    try:
        if grows:
            await_first(distinct(plan.missing, resources), say)
        room = room_of(plan.missing, resources)
        nodes = Nodes(room.slot, room.asks) if grows else None
        peaks, share = _sharing(room, store)
        keeper = retention.Keeper(plan.stages.values(), plan.done, store, keep)
        if status:
            status.mkdir()
        progress.begin(plan.missing)
        progress.folder = status
        a_slot = MOST if peaks else max(each.side_by_side for each in room.sorts)
        progress.at_once = room.slots * (1 if peaks else a_slot)
        queue = Queue(plan, room.slots, share, room.width, room.least)
        searcher = StageSearcher(
            queue, store, peaks, say, begin, leases, room.timeout, keeper, progress, room.number, nodes
        )
        most = TRIALS_OF_A_TUNER if nodes else room.slots * a_slot
        ended = UNFINISHED  # by the user: Tune then returns early, without an exception
        while not (searcher.queue.over or searcher.store_gone):
            begun, ray_ended = searcher.begun, ""
            try:
                with signals.sigint_kept():
                    _tuner(searcher, store, room, most, folder, status, checked).fit()
                if searcher.left_to_others:
                    searcher.wait()
                elif searcher.begun - begun < TRIALS_OF_A_TUNER:
                    break
                gc.collect()  # the Tuner
            except OSError as error:
                if not is_disk_full(error):
                    raise
                ended = Failure("not finished, the disk is full; run again to continue", FULL_DISK)
                break
            except RuntimeError as error:  # Tune ends where Ray kills its worker
                checked()
                ended = Failure(f"not finished, {gave_up(error)}; run again to continue", kind_of(classify(error)))
                if not (out_of_memory(error) and searcher.killed()):
                    break
            except RayEndedError as error:
                ended = Failure(f"not finished, {error}; run again to continue", LOST_NODE)
                searcher.put_back()
                ray_ended = str(error)
            except KeyboardInterrupt:  # outside Tune, or a second time
                break
            if ray_ended:
                if not start_again():
                    say(ended)
                    break
                say(f"{ray_ended}; Ray was started again, and the run continues")
        searcher.note_overhead()
        queue = searcher.queue
        unfinished = {stage.key for stage in plan.missing} - queue.done - set(queue.errors)
        return queue.errors | dict.fromkeys(unfinished, ended)
    finally:
        if nodes:
            nodes.close()
        leases.close()
        shutil.rmtree(folder, ignore_errors=True)


def _sharing(room: Room, store: Store) -> tuple[Peaks | None, Callable[[Stage], float]]:
    """Return the peaks of memory by which stages share a GPU, if some do, and the share that each stage gets."""

    def by_peaks(resources: Resources) -> bool:
        # A share that the user set is kept. vLLM takes its memory at its start, so it shares with no other stage. Two
        # ranks of a worker group may not be on one GPU.
        free = resources.gpus is None and resources.engine == vllm.BUILT_IN and not resources.grouped("defend")
        return free and bool(room.per_worker[resources].get("GPU"))

    peaks = peaks_of(store) if any(map(by_peaks, room.sorts)) else None

    def share(stage: Stage) -> float:
        resources = room.of(stage)
        if peaks and by_peaks(resources):
            return peaks.share(stage)
        if resources.grouped("defend") or room.per_worker[resources].get("GPU"):
            return 1.0
        return side_by_side(resources.side_by_side)(stage)

    return peaks, share


def _tuner(
    searcher: StageSearcher,
    store: Store,
    room: Room,
    most: int,
    folder: Path,
    status: Path | None,
    checked: Callable[[], None],
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(StageTrial, _trial_resources),
        param_space={
            "settings": [
                _settings(each, room.per_worker[each], store.location, status, searcher.metered) for each in room.sorts
            ]
        },
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=ErrorRecorder(searcher.witnessed),
            trial_name_creator=lambda trial: Stage.from_json(trial.config["stage"]).label,
            trial_dirname_creator=lambda trial: trial.trial_id,  # a label may be too long for one, or have a slash
            num_samples=TRIALS_OF_A_TUNER,
            max_concurrent_trials=most,
            reuse_actors=True,
        ),
        run_config=run_config(folder, [Gate(checked)]),
    )


def _settings(
    resources: Resources, per_worker: Mapping[str, float], store: str, status: Path | None, metered: str = ""
) -> TrialSettings:
    """Return the settings that all trials with these resources share."""
    return TrialSettings(
        store=store,
        status=str(status) if status else None,
        workers=resources.workers,
        least_workers=resources.least_workers,
        cpus=resources.cpus,
        grouped=tuple(kind for kind in get_args(Kind) if resources.grouped(kind)),
        sharding=deepspeed.sharding(resources),
        in_shards=resources.sharding == TENSOR,
        per_worker=per_worker,
        engine=resources.engine,
        timeout=resources.timeout,
        report_to=resources.report_to,
        checkpoint_minutes=resources.checkpoint_minutes,
        libraries=library_versions(),
        metered=metered,
    )


def run_config(folder: Path, callbacks: Sequence[tune.Callback] = ()) -> tune.RunConfig:
    """Return the RunConfig of a Tuner that writes below `folder`, logs nothing and leaves retries to the queue."""
    return tune.RunConfig(
        name=uuid.uuid4().hex[:8],
        storage_path=str(folder),
        verbose=0,
        failure_config=tune.FailureConfig(max_failures=0),
        callbacks=[*callbacks, Pulse()],
    )


def _trial_resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return what a trial's process holds: its share of what a worker gets; next to nothing where a group does it."""
    job = StageJob.of(config)
    if job.grouped:  # no CPU, so that the group can always be placed
        return tune.PlacementGroupFactory([{ray_env.HEAD: 0.001}])
    held = {name: amount * job.share for name, amount in job.settings.per_worker.items()}
    if job.settings.cpus is not None and "GPU" in held:  # it has a share of a GPU, and as many CPUs as the user set
        held["CPU"] = float(job.settings.cpus)
    return tune.PlacementGroupFactory([held])


def gave_up(error: RuntimeError) -> str:
    """Return why Tune ended: it does where Ray kills its worker."""
    return "memory ran out and Ray ended the worker" if out_of_memory(error) else classify(error)
