"""What Tune is told, and what is made of how a stage ended; Ray itself is not started here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import execute
from benchmark.cell import Resources
from benchmark.execute import KILLED, StageSearcher, out_of_memory
from benchmark.memory import Peaks
from benchmark.schedule import Queue, whole
from benchmark.store import Store
from tests.benchmark.helpers import put
from tests.benchmark.test_schedule import SETTINGS, plan, stage

FINISHED = StageSearcher.FINISHED
OK = {"ok": 1}
SHORT = {"ok": 0, "error": "OutOfMemoryError: CUDA out of memory", "short_of_memory": True}


class Tune:
    """Feeds a searcher as Tune does."""

    def __init__(self, *keys: str, slots: int, store: Store, peaks: Peaks | None = None) -> None:
        self.said: list[str] = []
        share = peaks.share if peaks else whole
        queue = Queue(plan(*(stage(key) for key in keys)), slots, share)
        self.searcher = StageSearcher(queue, store, peaks, self.said.append)
        self.trials = 0

    def ask(self) -> Any:
        """The key of the stage that is suggested under the next trial's id, else what is suggested."""
        config = self.searcher.suggest(str(self.trials))
        if config in (None, FINISHED):
            return config
        self.trials += 1
        return config["stage"]["key"]


@pytest.fixture
def tune(store: Store) -> Callable[..., Tune]:
    return lambda *keys, **more: Tune(*keys, store=store, **more)


def test_a_stage_out_of_memory_is_suggested_again_alone(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", "c", slots=2)
    assert [fake.ask() for _ in range(3)] == ["a", "b", None]
    fake.searcher.on_trial_complete("0", SHORT)
    assert fake.said == ["[0/3] attack m x a out of memory; again, alone"]
    assert fake.ask() is None
    fake.searcher.on_trial_complete("1", OK)
    assert [fake.ask() for _ in range(2)] == ["a", None]
    fake.searcher.on_trial_complete("2", OK)
    assert fake.ask() == "c"
    assert fake.ask() is None, "a running stage may have to run again, so this is not the end"
    fake.searcher.on_trial_complete("3", OK)
    assert fake.ask() == FINISHED
    assert fake.searcher.queue.errors == {}


def test_out_of_memory_alone_is_a_failure(tune: Callable[..., Tune]) -> None:
    fake = tune("a", slots=1)
    for trial in ("0", "1"):
        assert fake.ask() == "a"
        fake.searcher.on_trial_complete(trial, SHORT)
    assert fake.ask() == FINISHED
    assert fake.searcher.queue.errors == {"a": SHORT["error"]}
    assert fake.said[1] == f"[1/1] attack m x a FAILED: {SHORT['error']}"


def test_a_worker_that_died_beside_others_is_tried_again_alone(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.searcher.on_trial_complete("0", None, error=True)
    assert fake.said == ["[0/2] attack m x a the worker process died; again, alone"]
    fake.searcher.on_trial_complete("1", OK)
    assert fake.ask() == "a"
    fake.searcher.on_trial_complete("2", None, error=True)
    assert fake.searcher.queue.errors == {"a": KILLED}


def test_a_worker_that_died_with_no_other_has_failed(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=1)
    assert fake.ask() == "a"
    fake.searcher.on_trial_complete("0", None, error=True)
    assert fake.searcher.queue.errors == {"a": KILLED}
    assert fake.ask() == "b"


def test_another_error_is_final(tune: Callable[..., Tune]) -> None:
    fake = tune("a", "b", slots=2)
    assert [fake.ask(), fake.ask()] == ["a", "b"]
    fake.searcher.on_trial_complete("0", {"ok": 0, "error": "it diverged", "short_of_memory": False})
    assert fake.searcher.queue.errors == {"a": "it diverged"}


def test_the_share_is_in_the_config_and_grows_smaller_once_a_stage_was_measured(
    tune: Callable[..., Tune], store: Store
) -> None:
    fake = tune("a", "b", slots=1, peaks=Peaks([]))
    assert fake.searcher.suggest("0")["share"] == 1.0
    measured = {"kind": "attack", "settings": SETTINGS, "peak_memory_bytes": 2**30, "device_memory_bytes": 80 * 2**30}
    put(store, "attack", "a", measured)
    fake.searcher.on_trial_complete("0", OK)
    assert fake.searcher.suggest("1")["share"] == 0.125


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
        execute.StageError("[Rank 1 Error Snippet]: torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_errors_for_want_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert out_of_memory(error)
    assert "\n" not in execute.one_line(error)
    assert capsys.readouterr().err == "", "no traceback"


def test_the_cpu_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("no row"), KeyError("memory")])
def test_other_errors(error: Exception) -> None:
    assert not out_of_memory(error)


PER_WORKER = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("resources", "share", "expected"),
    [
        (Resources(), 1.0, {"CPU": 8.0, "GPU": 1.0}),
        (Resources(), 0.25, {"CPU": 2.0, "GPU": 0.25}),
        (Resources(cpus=8), 0.25, {"CPU": 8.0, "GPU": 0.25}),  # the user's word
        (Resources(workers=2), 1.0, {execute.HEAD: 0.001}),
    ],
)
def test_a_trial_holds_its_share_of_a_worker(resources: Resources, share: float, expected: dict[str, float]) -> None:
    held = execute._trial_resources(resources, {"per_worker": PER_WORKER, "share": share})
    assert held.bundles == [expected]


class FakeTuner:
    """Ends as Tune does when Ray kills a worker, until nothing runs beside what it was asked to run."""

    def __init__(self, searcher: StageSearcher, at_once: int) -> None:
        self.searcher, self.at_once = searcher, at_once

    def fit(self) -> None:
        number = 0
        while True:
            begun = []
            while len(begun) < self.at_once and isinstance(self.searcher.suggest(str(number)), dict):
                begun.append(str(number))
                number += 1
            if not begun:
                return
            if len(begun) > 1:
                raise RuntimeError("Caught unexpected exception: Task was killed due to the node running low on memory")
            self.searcher.on_trial_complete(begun[0], OK)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two slots without Ray; gives how many stages at a time each Tuner was allowed."""
    tuners: list[int] = []

    def tuner(searcher: StageSearcher, *more: Any) -> FakeTuner:
        tuners.append(more[-2])
        return FakeTuner(searcher, more[-2])

    monkeypatch.setattr(execute, "allotment", lambda resources: {"CPU": 1.0})
    monkeypatch.setattr(execute, "_at_once", lambda resources, per_worker: 2)
    monkeypatch.setattr(execute, "_tuner", tuner)
    return tuners


def test_where_ray_ends_a_worker_for_memory_tune_starts_again_with_what_ran_alone(
    store: Store, fake_ray: list[int]
) -> None:
    said: list[str] = []
    errors = execute._do(plan(stage("a"), stage("b")), store, Resources(), said.append)
    assert errors == {}
    assert len(fake_ray) == 2
    assert [line.split("; ")[-1] for line in said[:2]] == ["again, alone"] * 2
    assert len(said) == 4


def test_where_tune_ends_for_another_reason_it_is_not_started_again(
    store: Store, fake_ray: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: FakeTuner) -> None:
        self.searcher.suggest("0")
        raise RuntimeError("no disk space left")

    monkeypatch.setattr(FakeTuner, "fit", fit)
    errors = execute._do(plan(stage("a"), stage("b")), store, Resources(), lambda line: None)
    assert errors == dict.fromkeys("ab", "not finished, RuntimeError: no disk space left; run again to go on")
    assert len(fake_ray) == 1


def test_nothing_is_left_behind(store: Store, fake_ray: list[int]) -> None:
    execute._do(plan(stage("a")), store, Resources(), lambda line: None)
    assert list(Path(store.root / "unfinished").iterdir()) == []
