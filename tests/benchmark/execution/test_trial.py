"""Workers of a group, in this process and without Ray; `tests/integration` has real groups."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import ray.train
import ray.train.collective
import torch.distributed

from benchmark.execution import driver, stages, trial
from benchmark.execution.trial import StageJob, StageTrial
from benchmark.grid.resources import Resources
from benchmark.plan.failures import MISTAKE, StageError, classify
from benchmark.store.local import LocalStore
from sande import compute
from sande.errors import NonFiniteError, UserError
from tests.benchmark.plan.helpers import stage

PER_WORKER = {"CPU": 1.0}


@pytest.fixture(autouse=True)
def _compute_type_of_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what a test set, in the environment too."""
    monkeypatch.setenv(compute.VARIABLE, "fp32")
    compute.compute_type.cache_clear()
    yield
    compute.compute_type.cache_clear()


def job(store: LocalStore, **libraries: str) -> StageJob:
    """Of a stage for two workers, planned with these libraries and otherwise with those here."""
    settings = driver._settings(Resources(workers=2, report_to=()), PER_WORKER, store.location, None)
    return StageJob(stage("a"), 1.0, 1.0, replace(settings, libraries={**settings.libraries, **libraries}))


def be_worker(monkeypatch: pytest.MonkeyPatch, rank: int, size: int = 2) -> None:
    monkeypatch.setattr(trial.logs, "quiet", lambda: None)
    monkeypatch.setattr(trial.logs, "quiet", lambda: None)
    context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: size)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda of_this_one: of_this_one)


def train(of: StageJob) -> None:
    trial._train_loop({"job": of, "report_errors": True})


# --- Versions of libraries ------------------------------------------------------------------------------------------


def test_a_worker_of_a_training_with_another_library_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_worker(monkeypatch, rank=1)
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("it would get a wrong key"))
    with pytest.raises(StageError, match=r"^trl is .* on this worker and 0\.1 where the run was started") as caught:
        train(job(store, trl="0.1"))
    assert caught.value.kind == MISTAKE


def test_a_worker_of_an_evaluation_with_another_library_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_worker(monkeypatch, rank=0, size=1)
    monkeypatch.setattr(stages, "evaluate", lambda *_, **__: pytest.fail("it would get a wrong key"))
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    config = {"job": job(store, trl="0.1"), "meeting": (meeting.host, meeting.port)}
    line, kind = trial._evaluation_loop(config) or ("", "")
    assert line.startswith("trl is ")
    assert kind == MISTAKE


# --- Errors of one worker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UserError("rows: none; add some"), NonFiniteError("stage sft: loss is nan")])
def test_an_error_of_a_training_ends_its_group(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    be_worker(monkeypatch, rank=1)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(stages, "train", fail)
    with pytest.raises(StageError) as caught:
        train(job(store))
    received = cloudpickle.loads(cloudpickle.dumps(caught.value))
    told, raised = classify(received), classify(error)
    assert (told, told.kind) == (raised, raised.kind)


def group_that_raises(failures: dict[int, Exception]) -> Any:
    """In place of TorchTrainer."""

    def fit() -> None:
        raise ray.train.WorkerGroupError("tracebacks", failures)

    return lambda *_, **__: SimpleNamespace(fit=fit)


def fit(of: StageJob, failures: dict[int, Exception], workers: int = 2) -> None:
    alone = SimpleNamespace(_job=of, logdir="/not/there")
    StageTrial._fit(alone, group_that_raises(failures), trial._train_loop, workers, report_errors=True)  # type: ignore[arg-type]


def test_a_group_is_told_which_ray_it_belongs_to(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(trial.ray_env, "pass_address", lambda: told.append("address"))
    for workers in (0, 2):  # without a group, the training is in this process
        with pytest.raises(ray.train.WorkerGroupError):
            fit(job(store), {}, workers)
        assert len(told) == workers / 2


def test_the_sentence_of_one_worker_is_that_of_its_stage(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.ray_env, "pass_address", lambda: None)
    followed = RuntimeError("gloo/transport: connection closed by peer")
    first, second = (StageError(f"rows: none; add {number}", MISTAKE) for number in (1, 2))
    with pytest.raises(StageError, match=r"^rows: none; add 1$") as caught:
        fit(job(store), {0: followed, 2: second, 1: first})
    assert caught.value.kind == MISTAKE
    with pytest.raises(ray.train.WorkerGroupError):
        fit(job(store), {0: followed})


# --- The compute type -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [(2, "bf16"), (1, "fp32")])
def test_the_workers_of_a_training_compute_in_the_type_of_the_first(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, size: int, expected: str
) -> None:
    be_worker(monkeypatch, rank=size - 1, size=size)
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda of_this_one: "bf16")
    used = list[tuple[str, str]]()
    monkeypatch.setattr(stages, "train", lambda *_: used.append((compute.resolve("auto"), compute.compute_type())))
    assert compute.compute_type() == "fp32", "as it was measured here"
    train(job(store))
    assert used == [(expected, expected)]
