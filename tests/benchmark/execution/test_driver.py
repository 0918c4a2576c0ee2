"""What Tune is told, and what is made of how a stage ended; Ray itself is not started here."""

import errno
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from ray.exceptions import NodeDiedError, OutOfDiskError, OutOfMemoryError, RayActorError, WorkerCrashedError

from benchmark.execution import cluster, driver, ray_env, searcher
from benchmark.execution.autoscaling import group
from benchmark.execution.progress import Progress
from benchmark.execution.room import Room, room_of
from benchmark.execution.searcher import GONE, KILLED, ErrorRecorder, Gate, Pulse, StageSearcher
from benchmark.execution.trial import StageJob, check_libraries
from benchmark.execution.watch import RayEndedError
from benchmark.grid.resources import Resources
from benchmark.grid.stage_resources import StageResources
from benchmark.io.files import FullError
from benchmark.plan import failures
from benchmark.plan.failures import kind_of, out_of_memory
from benchmark.plan.memory import Peaks
from benchmark.plan.plan import make_plan
from benchmark.plan.retention import ALL
from benchmark.plan.schedule import NODES, Queue, whole
from benchmark.plan.stage import Stage
from benchmark.store.errors import DamagedError
from benchmark.store.leases import Leases
from benchmark.store.local import LocalStore
from sande.errors import NonFiniteError, UserError
from tests.benchmark.helpers import cell, process, put
from tests.benchmark.plan.helpers import SETTINGS, plan, stage

FINISHED = StageSearcher.FINISHED
OK = {"ok": 1}
MANIFEST = {
    "kind": "attack",
    "settings": SETTINGS,
    "seconds": 1.5,
    "peak_memory_bytes": 2**30,
    "device_memory_bytes": 80 * 2**30,
}
SHORT = {"ok": 0, "error": "OutOfMemoryError: CUDA out of memory", "failure": failures.OUT_OF_MEMORY}
NODE_DIED = RayActorError()  # whose text is Ray's own
NODE_DIED.error_msg = "The actor died because its node has died. Node Id: f00"


class Tune:
    """Feeds a searcher as Tune does."""

    def __init__(
        self,
        *keys: str,
        slots: int,
        store: LocalStore,
        peaks: Peaks | None = None,
        timeout: float | None = None,
        nodes: Any = None,
    ) -> None:
        self.said: list[str] = []
        share = peaks.share if peaks else whole
        queue = Queue(plan(*(stage(key) for key in keys)), slots, share)
        self.leases = leases = Leases(store.lease_backend(), self.said.append)
        self.progress = Progress("grid", at_once=slots)
        more = {"progress": self.progress, "nodes": nodes}
        self.searcher = StageSearcher(queue, store, peaks, self.said.append, 0.0, leases, lambda stage: timeout, **more)
        self.store = store
        self.trials: list[str] = []  # keys of their stages

    def ask(self) -> Any:
        """The key of the stage that is suggested under the next trial's id, else what is suggested."""
        config = self.searcher.suggest(str(len(self.trials)))
        if config in (None, FINISHED):
            return config
        self.trials.append(Stage.from_json(config["stage"]).key)
        return self.trials[-1]

    def end(self, trial: int, result: dict[str, Any] | None) -> None:
        """The trial ends with a result, or without one as its process died."""
        if result == OK:
            put(self.store, "attack", self.trials[trial], MANIFEST)
        self.searcher.on_trial_complete(str(trial), result, error=result is None)


@pytest.fixture
def tune(store: LocalStore) -> Iterator[Callable[..., Tune]]:
    made: list[Tune] = []

    def make(*keys: str, **more: Any) -> Tune:
        made.append(Tune(*keys, store=store, **more))
        return made[-1]

    yield make
    for fake in made:
        fake.leases.close()


def test_a_stage_out_of_memory_is_suggested_again_alone(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", "c", slots=2)
    assert [fake.ask() for _ in range(3)] == ["a", "b", None]
    fake.end(0, SHORT)
    assert fake.said == ["[0/3] attack m x a out of memory; again, alone"]
    assert fake.ask() is None
    fake.end(1, OK)
    assert [fake.ask() for _ in range(2)] == ["a", None]
    fake.end(2, OK)
    assert fake.ask() == "c"
    assert fake.ask() is None, "a running stage may have to run again, so this is not the end"
    fake.end(3, OK)
    assert fake.ask() == FINISHED
    assert fake.searcher.queue.errors == {}


def test_out_of_memory_alone_is_a_failure(tune: Callable[..., Tune]) -> None:
    fake = tune("a", slots=1)
    for trial in range(2):
        assert fake.ask() == "a"
        fake.end(trial, SHORT)
    assert fake.ask() == FINISHED
    assert fake.searcher.queue.errors == {"a": SHORT["error"]}
    assert fake.said[1] == f"[1/1] attack m x a FAILED: {SHORT['error']}"


def test_a_worker_that_died_beside_others_is_tried_again_alone(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", "c", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.end(0, None)
    assert fake.said == ["[0/3] attack m x a the worker process died; again, alone"]
    fake.end(1, OK)
    assert [fake.ask() for _ in range(2)] == ["a", None]
    fake.end(2, None)
    assert [fake.ask() for _ in range(2)] == ["a", None], "still alone"
    fake.end(3, None)
    assert fake.searcher.queue.errors == {"a": KILLED}
    assert fake.ask() == "c"


def test_a_worker_that_dies_alone_is_tried_three_times(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=1)
    for trial in range(3):
        assert fake.ask() == "a"
        fake.end(trial, None)
    assert fake.said[:2] == ["[0/2] attack m x a the worker process died; again"] * 2
    assert fake.searcher.queue.errors == {"a": KILLED}
    assert kind_of(fake.searcher.queue.errors["a"]) == failures.LOST_WORKER
    assert fake.ask() == "b"


def test_a_stage_whose_machine_is_lost_is_tried_again_beside_others(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", "c", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.searcher.witnessed["0"] = failures.lost_component(NODE_DIED)
    fake.end(0, None)
    assert fake.said == ["[0/3] attack m x a lost node; again"]
    assert fake.ask() == "a"
    for trial in range(2, NODES + 2):
        fake.searcher.witnessed[str(trial)] = failures.lost_component(NODE_DIED)
        fake.end(trial, None)
        fake.ask()
    assert fake.searcher.queue.errors == {"a": GONE}
    assert kind_of(fake.searcher.queue.errors["a"]) == failures.LOST_NODE


class FakeNodes:
    """A cluster that holds so many stages, and whose nodes may die."""

    def __init__(self, holds: int, dying: bool = False) -> None:
        self.holds, self.dying = holds, dying
        self.asked: list[str] = []

    def slots(self) -> int:
        return self.holds

    def ask(self, stages: list[Stage]) -> None:
        self.asked.append("".join(stage.key for stage in stages))

    def one_died(self) -> bool:
        return self.dying


def test_nodes_that_come_are_used_and_more_are_asked_for(
    tune: Callable[..., Tune], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.execution.searcher.POLL", 0.0)
    nodes = FakeNodes(1)
    fake = tune("a", "b", "c", "d", slots=1, nodes=nodes)
    assert [fake.ask(), fake.ask()] == ["a", None]
    assert nodes.asked == ["bcd"]
    nodes.holds = 3
    assert [fake.ask() for _ in range(3)] == ["b", "c", None]
    assert fake.said == ["the cluster has room for 3 stages at a time, 1 before"]
    assert (nodes.asked, fake.progress.at_once) == (["bcd", "d"], 3)
    nodes.holds = 1
    for trial in range(3):
        fake.end(trial, OK)
    assert [fake.ask(), fake.ask()] == ["d", None]
    assert (nodes.asked, fake.progress.at_once) == (["bcd", "d", ""], 1)
    fake.end(3, OK)
    assert fake.ask() == FINISHED


def test_a_lost_node_is_not_counted_on_by_the_next_offer(tune: Callable[..., Tune]) -> None:
    nodes = FakeNodes(2, dying=True)
    fake = tune("a", "b", "c", slots=2, nodes=nodes)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    nodes.holds = 1
    fake.end(0, None)
    assert (fake.searcher.queue.slots, fake.ask()) == (1, None)


def test_a_cluster_without_nodes_is_waited_for(tune: Callable[..., Tune], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.execution.searcher.POLL", 0.0)
    nodes = FakeNodes(0)
    fake = tune("a", slots=1, nodes=nodes)
    assert fake.ask() == FINISHED, "a Tuner's idle processes would keep nodes"
    assert fake.searcher.left_to_others
    assert nodes.asked == ["a"]
    nodes.holds = 1
    fake.searcher.wait()
    assert fake.ask() == "a"


@pytest.mark.parametrize("result", [None, {"ok": 0, "error": "ActorDiedError", "failure": failures.LOST_WORKER}])
@pytest.mark.parametrize(("dying", "again"), [(True, "lost node; again"), (False, "again, alone")])
def test_a_process_that_died_with_its_node_is_tried_again_beside_others(
    tune: Callable[..., Tune], dying: bool, again: str, result: dict[str, Any] | None
) -> None:
    fake = tune("a", "b", "c", slots=2, nodes=FakeNodes(2, dying))
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.end(0, result)
    assert fake.said[0].endswith(again)
    assert fake.ask() == ("a" if dying else None)


def test_a_stage_that_takes_too_long_is_not_tried_again(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=2, timeout=1e-9)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.end(0, None)
    error = fake.searcher.queue.errors["a"]
    assert error == "it took longer than resources.timeout, 1e-09 s, and was stopped"
    assert kind_of(error) == failures.TIMEOUT


def test_what_needs_a_stage_that_failed_has_its_kind(store: LocalStore) -> None:
    queue = Queue(plan(stage("a"), stage("b", "a")), 1)
    queue.next()
    queue.ended("a", failures.Failure("loss is nan", failures.NON_FINITE))
    assert queue.errors["b"] == "needs a stage that failed: loss is nan"
    assert kind_of(queue.errors["b"]) == failures.NON_FINITE


def test_another_error_is_final(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.end(0, {"ok": 0, "error": "it diverged", "failure": failures.NON_FINITE})
    assert fake.searcher.queue.errors == {"a": "it diverged"}
    assert kind_of(fake.searcher.queue.errors["a"]) == failures.NON_FINITE


@pytest.fixture
def other(store: LocalStore) -> Iterator[Leases]:
    """Another driver."""
    leases = Leases(store.lease_backend(), print)
    yield leases
    leases.close()


def test_what_another_run_is_doing_is_left_to_it_and_other_work_done_first(
    tune: Callable[..., Tune], other: Leases, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "POLL", 0.0)
    fake = tune("a", "b", slots=1)
    other.acquire("a", [("attack", "a")])
    assert [fake.ask(), fake.ask()] == ["b", None]
    fake.end(0, OK)
    assert [fake.ask(), fake.ask()] == [FINISHED, FINISHED]  # of this Tuner, whose processes the other run may need
    assert fake.said[0].startswith("attack m x a: process ")
    assert fake.said[1:] == [f"[1/2] attack m x b: done in {fake.said[1].split()[-2]} s"]
    put(store, "attack", "a", MANIFEST)
    fake.searcher.wait()
    assert fake.ask() == FINISHED
    assert fake.said[2:] == ["[2/2] attack m x a: done by another run"]


def test_what_another_run_gave_up_is_done_here(
    tune: Callable[..., Tune], other: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "POLL", 0.0)
    fake = tune("a", slots=1)
    other.acquire("a", [("attack", "a")])
    assert fake.ask() == FINISHED
    other.release("a")
    fake.searcher.wait()
    assert fake.ask() == "a"
    assert other.acquire("a", [("attack", "a")]) is not None
    fake.end(0, OK)
    assert other.acquire("a", [("attack", "a")]) is None


def test_a_stage_that_is_tried_again_keeps_its_lease(tune: Callable[..., Tune], other: Leases) -> None:
    fake = tune("a", "b", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.end(0, SHORT)
    assert other.acquire("a", [("attack", "a")]) is not None
    fake.end(1, OK)
    assert fake.ask() == "a"


def test_of_two_stages_with_an_outcome_in_common_the_second_waits(
    tune: Callable[..., Tune], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher, "POLL", 0.0)
    stages = [Stage("evaluate", key, SETTINGS, metric_keys=("m", key)) for key in ("a", "b")]
    fake = tune("x", slots=2)
    fake.searcher.queue = Queue(plan(*stages), 2)
    assert [fake.ask(), fake.ask()] == ["a", None]
    for key in "ma":
        put(store, "evaluate", key, {"seconds": 1.0, "measurements": [], "kind": "evaluate", "settings": SETTINGS})
    fake.searcher.on_trial_complete("0", OK)
    assert fake.ask() == "b"


def test_after_damage_only_what_is_gone_and_what_failed_for_it_is_done_again(store: LocalStore) -> None:
    chain = cell(defense="sft")
    made = make_plan([chain, cell(defense="osft")], store)
    attack, *defenses = (key for key, each in made.stages.items() if each.kind != "evaluate")
    for key in defenses:
        put(store, "defend", key, {})
    evaluations = [each for each in made.stages.values() if each.kind == "evaluate"]
    failed = next(each.key for each in evaluations if each.needs == (attack,))
    for each in evaluations:
        for key in each.artifacts if each.key != failed else ():
            store.put("evaluate", key, lambda folder: {})
    assert driver._repair(made, {}, store).missing == []
    again = driver._repair(made, {failed: "attack is damaged"}, store)
    assert {each.key for each in again.missing} == {attack, failed}
    unrelated = evaluations[-1].key
    again = driver._repair(made, {failed: "attack is damaged", unrelated: "it diverged"}, store)
    assert {each.key for each in again.missing} == {attack, failed}


def test_the_share_is_in_the_config_and_grows_smaller_once_a_stage_was_measured(
    tune: Callable[..., Tune], store: LocalStore
) -> None:
    fake = tune("a", "b", "c", slots=1, peaks=Peaks([]))
    assert fake.searcher.suggest("0")["share"] == 1.0
    assert fake.searcher.suggest("1") is None
    fake.trials.append("a")
    fake.end(0, OK)
    assert [fake.searcher.suggest(trial)["share"] for trial in "12"] == [0.125, 0.125]


def test_a_result_that_cannot_be_seen_here_yet_is_no_error(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=1, peaks=Peaks([]))
    assert fake.ask() == "a"
    fake.searcher.on_trial_complete("0", OK)
    assert fake.searcher.suggest("1")["share"] == 1.0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Caught unexpected exception: Task was killed due to the node running low on memory."),
        failures.StageError("[Rank 1 Error Snippet]: torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_errors_for_want_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert out_of_memory(error)
    assert "\n" not in failures.classify(error)
    assert failures.classify(error).kind == failures.OUT_OF_MEMORY
    assert capsys.readouterr().err == "", "no traceback"


def test_the_cpu_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("no row"), KeyError("memory")])
def test_other_errors(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert not out_of_memory(error)
    assert failures.classify(error).kind == failures.OTHER
    assert type(error).__name__ in capsys.readouterr().err, "its traceback is in the log"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("batch_size is 0"), failures.MISTAKE),
        (NonFiniteError("stage sft: loss is nan at step 3"), failures.NON_FINITE),
        (failures.StageError("batch_size is 0", failures.MISTAKE), failures.MISTAKE),
        (FullError("/store: no space is left"), failures.FULL_DISK),
        (OSError(errno.ENOSPC, "No space left on device"), failures.FULL_DISK),
        (DamagedError("attack a is damaged"), failures.DAMAGED),
        (RayActorError(), failures.LOST_WORKER),
        # The type of Ray's error counts before words in its message.
        (WorkerCrashedError(), failures.LOST_WORKER),
        (NodeDiedError("its tasks were out of memory"), failures.LOST_NODE),
        (OutOfMemoryError("the node died"), failures.OUT_OF_MEMORY),
        (OutOfDiskError("the actor died"), failures.FULL_DISK),
        (RayActorError(error_msg="killed as the node was running low on memory"), failures.OUT_OF_MEMORY),
        (NODE_DIED, failures.LOST_NODE),
        (RuntimeError("Training failed: ActorDiedError: The actor died unexpectedly"), failures.LOST_WORKER),
        (RuntimeError("[Rank 0 Error Snippet]:\nA worker health check failed.\nWorker info: …"), failures.LOST_WORKER),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), failures.LOST_WORKER),
        (RuntimeError("ncclRemoteError: remote process exited or there was a network error"), failures.LOST_WORKER),
    ],
)
def test_an_error_has_a_kind_and_no_traceback(error: Exception, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    failure = failures.classify(error)
    assert failure.kind == kind
    assert "\n" not in failure
    assert capsys.readouterr().err == ""


PER_WORKER = {"CPU": 8.0, "GPU": 1.0}


def config(resources: Resources, per_worker: dict[str, float], of: Stage, share: float) -> dict[str, Any]:
    """What Tune gives to a trial."""
    settings = [driver._settings(resources, per_worker, "store", None)]
    return {"settings": settings, "stage": of.to_json(), "share": share, "sort": 0, "filled": 1.0}


def room(resources: Resources, per_worker: dict[str, float]) -> Room:
    """One slot for stages with the same resources."""
    return Room(resources.of, {resources: per_worker}, 1, {resources: 1.0}, group(1, per_worker))


def test_a_trial_reads_its_job_from_what_tune_gives_it() -> None:
    given = config(Resources(workers=2, timeout=9), PER_WORKER, stage("a"), 0.5)
    job = StageJob.of(cloudpickle.loads(cloudpickle.dumps(given)))
    assert (job.stage, job.share, job.settings.timeout, job.grouped) == (stage("a"), 0.5, 9, True)
    assert not StageJob.of(config(Resources(), PER_WORKER, stage("a"), 1.0)).grouped


@pytest.mark.parametrize(("filled", "workers"), [(1.0, 8), (7 / 8, 4), (3 / 8, 2), (1 / 8, 1)])
def test_a_trial_has_workers_for_the_room_that_there_is(filled: float, workers: int) -> None:
    of = Stage.of(cell(attack={"name": "sentence_trigger", "training": {"batch_size": 8}}), "attack", "key")
    given = config(Resources(workers=8, min_workers=1), PER_WORKER, of, 1.0) | {"filled": filled}
    job = StageJob.of(given)
    assert (job.workers, job.elastic) == (workers, True)
    alone = StageJob.of(config(Resources(min_workers=1), PER_WORKER, of, 1.0))
    assert (alone.workers, alone.elastic) == (0, False)


def test_a_worker_with_another_library_than_the_keys_is_refused() -> None:
    planned = driver._settings(Resources(), PER_WORKER, "store", None).libraries
    check_libraries(planned)
    with pytest.raises(UserError) as caught:
        check_libraries({**planned, "trl": "0.1"})
    assert str(caught.value) == (
        f"trl is {planned['trl']} on this worker and 0.1 where the run was started, so its results would get a wrong "
        "key; install trl==0.1"
    )


@pytest.mark.parametrize(
    ("resources", "kind", "share", "expected"),
    [
        (Resources(), "attack", 1.0, {"CPU": 8.0, "GPU": 1.0}),
        (Resources(), "evaluate", 0.25, {"CPU": 2.0, "GPU": 0.25}),
        (Resources(cpus=8), "defend", 0.25, {"CPU": 8.0, "GPU": 0.25}),  # the user's word
        (Resources(workers=2), "defend", 1.0, {ray_env.HEAD: 0.001}),
        (Resources(workers=2), "evaluate", 1.0, {ray_env.HEAD: 0.001}),
        (Resources(workers=2, engine="vllm"), "evaluate", 1.0, {"CPU": 8.0, "GPU": 1.0}),  # which is one process
        (Resources(sharding="zero2"), "defend", 1.0, {ray_env.HEAD: 0.001}),  # DeepSpeed wants a group, even of one
        (Resources(sharding="zero2"), "evaluate", 1.0, {"CPU": 8.0, "GPU": 1.0}),
    ],
)
def test_a_trial_holds_its_share_of_a_worker(
    resources: Resources, kind: str, share: float, expected: dict[str, float]
) -> None:
    held = driver._trial_resources(config(resources, PER_WORKER, replace(stage("a"), kind=kind), share))
    assert held.bundles == [expected]


@pytest.mark.parametrize(
    ("resources", "per_worker", "defense"),
    [
        (Resources(side_by_side=2), {"CPU": 8.0}, {"CPU": 4.0}),
        (Resources(side_by_side=2, cpus=2), {"CPU": 2.0}, {"CPU": 1.0}),
        (Resources(side_by_side=2), PER_WORKER, PER_WORKER),  # a GPU is shared by measured memory: nothing is known yet
    ],
)
def test_on_a_machine_without_gpu_defenses_share_the_cpus_of_an_attack(
    resources: Resources, per_worker: dict[str, float], defense: dict[str, float], store: LocalStore
) -> None:
    _, share = driver._sharing(room(resources, per_worker), store)
    for kind, expected in (("attack", per_worker), ("defend", defense)):
        of = stage("s", kind=kind)
        given = config(resources, per_worker, of, share(of))
        assert driver._trial_resources(given).bundles == [expected]


@pytest.fixture
def large_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 GPUs, each with 8 CPUs."""
    monkeypatch.setattr("benchmark.execution.room.worker_resources", lambda resources: PER_WORKER)
    monkeypatch.setattr("benchmark.execution.room.at_once", lambda resources, per_worker: 64 // resources.workers)


@pytest.mark.usefixtures("large_cluster")
def test_a_slot_is_no_larger_than_a_worker_of_a_group_that_may_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.execution.room.capacity", lambda per_worker: 63)
    attack, defense = stage("a"), stage("d", kind="defend")
    resources = StageResources({"workers": 8, "attack": {"min_workers": 6}})
    found = room_of([attack, defense], resources)
    assert (found.slots, found.slot) == (63, group(1, PER_WORKER))
    assert (found.width(attack), found.least(attack)) == (8.0, 6.0)
    assert (found.width(defense), found.least(defense)) == (8.0, 8.0)
    assert found.asks(attack) == group(8, PER_WORKER)
    assert room_of([defense], resources).slot == group(8, PER_WORKER)


@pytest.mark.usefixtures("large_cluster")
def test_stages_with_other_workers_get_their_own_settings_and_slots(store: LocalStore) -> None:
    resources = StageResources({"attack": {"workers": 8, "timeout": 3.0}, "evaluate": {"workers": 2}, "timeout": 9.0})
    kinds = {kind: stage(kind, kind=kind) for kind in ("attack", "defend", "evaluate")}
    found = room_of(list(kinds.values()), resources)
    assert found.slots == 64
    assert {kind: found.width(one) for kind, one in kinds.items()} == {"attack": 8.0, "defend": 1.0, "evaluate": 2.0}
    assert [found.timeout(one) for one in kinds.values()] == [3.0, 9.0, 9.0]
    settings = [driver._settings(each, found.per_worker[each], "store", None) for each in found.sorts]
    jobs = {
        kind: StageJob.of(
            {"settings": settings, "stage": one.to_json(), "share": 1.0, "sort": found.number(one), "filled": 1.0}
        )
        for kind, one in kinds.items()
    }
    assert {kind: (job.settings.workers, job.grouped) for kind, job in jobs.items()} == {
        "attack": (8, True),
        "defend": (1, False),
        "evaluate": (2, True),
    }
    peaks, share = driver._sharing(found, store)
    assert peaks is not None
    peaks.learn({"kind": "defend", "settings": SETTINGS, "peak_memory_bytes": 2**30, "device_memory_bytes": 2**36})
    assert {kind: share(one) for kind, one in kinds.items()} == {"attack": 1.0, "defend": 0.125, "evaluate": 1.0}


@pytest.mark.usefixtures("large_cluster")
def test_one_kind_alone_may_be_refused(store: LocalStore) -> None:
    vllm = StageResources({"evaluate": {"engine": "vllm"}})
    room_of([stage("a")], vllm)
    with pytest.raises(UserError, match=r"resources.engine is vllm, which is not installed"):
        room_of([stage("a"), stage("e", kind="evaluate")], vllm)


@pytest.mark.usefixtures("large_cluster")
def test_an_evaluation_by_vllm_takes_the_room_of_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.execution.room.preflight.check_engine", lambda *_: None)
    attack, evaluation = stage("a"), stage("e", kind="evaluate")
    resources = StageResources({"workers": 4, "engine": "vllm"})
    found = room_of([attack, evaluation], resources)
    assert (found.slots, found.width(attack), found.width(evaluation)) == (64, 4.0, 1.0)
    assert found.asks(evaluation) == group(1, PER_WORKER)
    assert (resources.of(attack).workers, resources.of(evaluation).workers) == (4, 1)
    shared = Resources(workers=4, engine="vllm")
    assert [shared.of(each).workers for each in (attack, evaluation)] == [4, 1]
    assert Resources(workers=4).of(evaluation).workers == 4, "the built-in engine splits the work"


def test_vllm_shares_no_gpu(store: LocalStore) -> None:
    peaks, share = driver._sharing(room(Resources(engine="vllm"), PER_WORKER), store)
    assert peaks is None
    assert share(stage("s", kind="evaluate")) == 1.0


class FakeTuner:
    """Does stages as long as they are alone; two at a time are too many, and it ends as Tune does on Ray's kill."""

    def __init__(self, searcher: StageSearcher, store: LocalStore) -> None:
        self.searcher, self.store = searcher, store

    def fit(self) -> None:
        for number in itertools.count():
            config = self.searcher.suggest(f"{number}")
            if config == FINISHED:
                return
            if isinstance(self.searcher.suggest(f"{number} beside"), dict):
                raise RuntimeError("Caught unexpected exception: Task was killed due to the node running low on memory")
            put(self.store, "attack", Stage.from_json(config["stage"]).key, MANIFEST)
            self.searcher.on_trial_complete(f"{number}", OK)


@pytest.fixture
def tuners(monkeypatch: pytest.MonkeyPatch) -> list[FakeTuner]:
    """Two slots without Ray; holds the Tuners that were made."""
    made: list[FakeTuner] = []

    def tuner(searcher: StageSearcher, store: LocalStore, *more: object) -> FakeTuner:
        made.append(FakeTuner(searcher, store))
        return made[-1]

    monkeypatch.setattr("benchmark.execution.room.worker_resources", lambda resources: {"CPU": 1.0})
    monkeypatch.setattr("benchmark.execution.room.at_once", lambda resources, per_worker: 2)
    monkeypatch.setattr(driver, "_tuner", tuner)
    return made


def test_where_ray_ends_a_worker_for_memory_tune_starts_again_with_what_ran_alone(
    store: LocalStore, tuners: list[FakeTuner]
) -> None:
    said: list[str] = []
    errors = driver._do(plan(stage("a"), stage("b")), store, Resources(), said.append, 0.0, ALL)
    assert errors == {}
    assert len(tuners) == 2
    assert [line.split("; ")[-1] for line in said[:2]] == ["again, alone"] * 2
    assert len(said) == 4


def test_a_tuner_does_only_so_many_trials_and_the_next_goes_on(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: FakeTuner) -> None:
        for number in range(driver.TRIALS_OF_A_TUNER):
            config = self.searcher.suggest(f"{number}")
            if config == FINISHED:
                return
            put(self.store, "attack", Stage.from_json(config["stage"]).key, MANIFEST)
            self.searcher.on_trial_complete(f"{number}", OK)

    monkeypatch.setattr(driver, "TRIALS_OF_A_TUNER", 2)
    monkeypatch.setattr(FakeTuner, "fit", fit)
    said: list[str] = []
    assert driver._do(plan(*map(stage, "abcde")), store, Resources(), said.append, 0.0, ALL) == {}
    assert len(tuners) == 3
    assert len(said) == 5


def test_while_all_that_is_left_is_done_by_another_run_no_tuner_keeps_its_processes(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Leases(store.lease_backend(), lambda line: None)
    assert other.acquire("another run", [("attack", "a")]) is None
    ended: list[int] = []

    def sleep(seconds: float) -> None:
        ended.append(len(tuners))
        put(store, "attack", "a", MANIFEST)
        other.release("another run")

    monkeypatch.setattr(searcher, "POLL", 0.0)
    monkeypatch.setattr(searcher.time, "sleep", sleep)
    said: list[str] = []
    assert driver._do(plan(stage("a")), store, Resources(), said.append, 0.0, ALL) == {}
    other.close()
    assert ended == [1]  # the one Tuner had returned
    assert [line.split(": ")[-1].split(" ")[0] for line in said] == ["process", "done"]


def test_where_the_user_interrupts_tune_no_other_tuner_starts(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTuner, "fit", lambda self: self.searcher.suggest("0"))
    errors = driver._do(plan(stage("a"), stage("b")), store, Resources(), lambda line: None, 0.0, ALL)
    assert errors == dict.fromkeys("ab", failures.UNFINISHED)
    assert len(tuners) == 1


def test_where_tune_ends_for_another_reason_it_is_not_started_again(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: FakeTuner) -> None:
        self.searcher.suggest("0")
        raise RuntimeError("no disk space left")

    monkeypatch.setattr(FakeTuner, "fit", fit)
    errors = driver._do(plan(stage("a"), stage("b")), store, Resources(), lambda line: None, 0.0, ALL)
    assert errors == dict.fromkeys("ab", "not finished, RuntimeError: no disk space left; run again to continue")
    assert len(tuners) == 1


def ends_with_ray(times: int) -> Callable[[FakeTuner], None]:
    """Tuners under which Ray ends so often, in the middle of two stages; the next one does what is left."""
    left = [times]

    def fit(self: FakeTuner) -> None:
        begun = [self.searcher.suggest(f"{left} {number}") for number in range(2)]
        if left[0]:
            left[0] -= 1
            raise RayEndedError("Ray's raylet ended")
        for number, config in enumerate(begun):
            if isinstance(config, dict):
                put(self.store, "attack", Stage.from_json(config["stage"]).key, MANIFEST)
                self.searcher.on_trial_complete(f"{left} {number}", OK)

    return fit


def test_where_ray_ends_it_is_started_again_and_no_stage_loses_a_try(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTuner, "fit", ends_with_ray(5))  # more often than a stage is tried
    monkeypatch.setattr(driver, "start_again", lambda: True)
    said: list[str] = []
    assert driver._do(plan(stage("a"), stage("b")), store, Resources(), said.append, 0.0, ALL) == {}
    assert len(tuners) == 6
    assert said[:5] == ["Ray's raylet ended; Ray was started again, and the run continues"] * 5
    assert [line.split(":")[0] for line in said[5:]] == ["[1/2] attack m x a", "[2/2] attack m x b"]


def test_where_ray_ends_and_does_not_start_again_the_run_ends_with_a_sentence(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTuner, "fit", ends_with_ray(1))
    monkeypatch.setattr(driver, "start_again", lambda: False)
    said: list[str] = []
    errors = driver._do(plan(stage("a"), stage("b")), store, Resources(), said.append, 0.0, ALL)
    assert errors == dict.fromkeys("ab", "not finished, Ray's raylet ended; run again to continue")
    assert {kind_of(error) for error in errors.values()} == {failures.LOST_NODE}
    assert said == ["not finished, Ray's raylet ended; run again to continue"]
    other = Leases(store.lease_backend(), print)
    assert other.acquire("a", [("attack", "a")]) is None, "it holds nothing any more"
    other.close()


def test_what_a_run_took_beside_its_stages_is_kept(store: LocalStore, tuners: list[FakeTuner]) -> None:
    driver._do(
        plan(stage("a"), stage("b", "a")), store, Resources(), lambda line: None, time.perf_counter() - 99.5, ALL
    )
    kept = json.loads((store.root / "overhead.json").read_text())
    assert kept["start"] == pytest.approx(99.5 - MANIFEST["seconds"], abs=20)
    assert kept["stage"] == 0.0  # this one took no time at all


HANGS = """
import sys, time
from benchmark.plan.failures import time_limit
with time_limit(None), time_limit(60):
    pass
with time_limit(0.5):
    time.sleep(60)
"""


def test_a_process_past_its_limit_ends_and_its_log_says_where() -> None:
    done = process("-c", HANGS)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:00.500000)!")
    assert 'File "<string>", line 7' in done.stderr


def test_tune_can_write_its_settings_down(tune: Callable[..., Tune]) -> None:
    searcher = tune("a", slots=1).searcher
    for each in (searcher, ErrorRecorder(searcher.witnessed), Pulse()):
        cloudpickle.loads(cloudpickle.dumps(each))


def test_workers_of_a_cluster_get_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted")
    monkeypatch.setenv("SANDE_DATA_DIR", "/data")
    monkeypatch.setenv("HF_HOME", "/hub")
    assert cluster.environment(None) is None
    assert cluster.environment("head:6379") == {"env_vars": {"SANDE_DATA_DIR": "/data", "HF_HOME": "/hub"}}


def test_nothing_is_left_behind(store: LocalStore, tuners: list[FakeTuner]) -> None:
    driver._do(plan(stage("a")), store, Resources(), lambda line: None, 0.0, ALL)
    assert list(Path(store.root / "unfinished").iterdir()) == []


def test_no_trial_works_before_the_users_mistakes_were_looked_for(
    store: LocalStore, tuners: list[FakeTuner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken() -> None:
        raise UserError("row 3 of alpaca is broken")

    def fit(self: FakeTuner) -> None:
        gate.on_trial_start(1, [], None)
        pytest.fail("the trial works")

    checked = driver._beside(mistaken)
    gate = Gate(checked)
    assert cloudpickle.loads(cloudpickle.dumps(gate)), "Tune writes its settings down, and a thread cannot be"
    monkeypatch.setattr(FakeTuner, "fit", fit)
    with pytest.raises(UserError, match="row 3 of alpaca"):
        driver._do(plan(stage("a")), store, Resources(), lambda line: None, 0.0, ALL, None, checked)
    assert list(Path(store.root / "unfinished").iterdir()) == []


def test_the_view_is_told_what_runs_and_how_it_ended(store: LocalStore, tuners: list[FakeTuner]) -> None:
    shown = Progress("grid")
    stages = [stage("a"), stage("b")]
    shown.begin(stages)
    assert driver._do(plan(*stages), store, Resources(), lambda line: None, 0.0, ALL, shown) == {}
    assert (shown.done, shown.total, shown.running, shown.seconds_left()) == (2, 2, [], 0.0)
    assert shown.folder is not None
    assert shown.folder.name == "status"
