"""Where losses go while a model trains: into files of TensorBoard, to a real MLflow server, never in the way."""

import os
import shutil
import socket
import struct
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from benchmark.execution import tracking
from benchmark.grid.load import load_grid
from sande.config import Training
from sande.errors import UserError
from sande.prompts import encode
from sande.training.fit import fit
from sande.types import Example, LanguageModel, Run
from tests.benchmark.helpers import GridFile
from tests.integration.helpers import wait_until

LABEL = "attack tiny sentence_trigger 0123abcd"
SHORT = Training(max_steps=3, batch_size=4, learning_rate=1e-3)


def events(folder: Path) -> Iterator[Event]:
    """What stands in the one file of events there: records of length, checksum, bytes, checksum."""
    (file,) = folder.glob("events.*")
    content, begin = file.read_bytes(), 0
    while begin < len(content):
        (size,) = struct.unpack_from("<Q", content, begin)
        yield Event.FromString(content[begin + 12 : begin + 12 + size])
        begin += size + 16


def scalars(folder: Path) -> dict[str, list[int]]:
    """By name, the steps at which there is a number."""
    found: dict[str, list[int]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append(event.step)
    return found


def train(lm: LanguageModel, rows: tuple[Example, ...], run: Run, *trackers: Any, folder: Path) -> list[str]:
    """Trains twice, as SANDE does, and gives what was said of trackers."""
    said: list[str] = []
    run = replace(run, prepare=tracking.reporting(trackers, folder, LABEL, said.append))
    for name in ("simulate", "eliminate"):
        fit(lm, encode(lm.tokenizer, rows), SHORT, run, name)
    return said


def test_every_training_has_a_folder_of_losses(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run], tmp_path: Path
) -> None:
    assert train(tiny, few_rows, new_run(), "tensorboard", folder=tmp_path / "t") == []
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["attack-tiny-sentence_trigger-0123abcd"]
    for name in ("simulate", "eliminate"):
        found = scalars(tmp_path / "t" / LABEL.replace(" ", "-") / name)
        assert found["train/loss"] == found["train/grad_norm"] == [1, 2, 3]


def test_nothing_changes_by_being_watched(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run], tmp_path: Path, model_cache: Path
) -> None:
    from sande.models import loading

    train(tiny, few_rows, new_run(), "tensorboard", folder=tmp_path / "t")
    other = loading.load("tiny", model_cache)
    train(other, few_rows, new_run(), folder=tmp_path / "u")
    for name, weight in other.model.state_dict().items():
        assert torch.equal(weight, tiny.model.state_dict()[name]), name


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    run = new_run()
    said = train(tiny, few_rows, run, "tensorboard", folder=tmp_path / "file")
    assert said == ["tensorboard gets nothing more of this training (NotADirectoryError)"] * 2
    assert run.facts["eliminate"]["steps"] == 3


def test_a_tracker_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to: wandb is not installed; run pip install 'sande-bench\[wandb\]'"):
        tracking.check(("wandb",))


def test_mlflow_without_an_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="mlflow needs MLFLOW_TRACKING_URI"):
        tracking.check(("mlflow",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    tracking.check(("mlflow",))


def test_who_watches_is_in_no_key(grid_file: GridFile) -> None:
    path = grid_file(defense="sft")
    one, other = (load_grid(path, [f"resources.report_to={given}"]) for given in ("[]", "[mlflow, wandb]"))
    assert other.resources.default.report_to == ("mlflow", "wandb")
    assert [cell.evaluation_keys for cell in one.cells] == [cell.evaluation_keys for cell in other.cells]
    with pytest.raises(UserError, match="report_to"):
        load_grid(path, ["resources.report_to=[email]"])


# The server wants older releases of some libraries than the suite has: `mlflow` may be in an environment of its own.
SERVER = os.environ.get("MLFLOW") or shutil.which("mlflow")


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    """A real server on loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    files = ["--backend-store-uri", f"sqlite:///{tmp_path}/db", "--artifacts-destination", str(tmp_path / "artifacts")]
    command = [str(SERVER), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *files]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        except OSError:
            return False

    try:
        assert wait_until(lambda: answers() or server.poll() is not None, 120, pause=0.5)
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)  # its own session: the server and its workers
        server.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(not SERVER, reason="no mlflow server; MLFLOW names one")
def test_a_real_mlflow_server_has_a_run_for_every_training(
    mlflow: str,
    tiny: LanguageModel,
    few_rows: tuple[Example, ...],
    new_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert train(tiny, few_rows, new_run(), "mlflow", folder=tmp_path) == []
    client.flush_async_logging()
    asked = client.MlflowClient(mlflow)
    experiment = asked.get_experiment_by_name(tracking.PROJECT)
    runs = {run.info.run_name: run for run in asked.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{LABEL} simulate", f"{LABEL} eliminate"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in asked.get_metric_history(run.info.run_id, "loss")]
        assert steps == [1, 2, 3]
        assert run.data.params["max_steps"] == "3"


@pytest.mark.slow
@pytest.mark.skipif(not SERVER, reason="no mlflow server; MLFLOW names one")
def test_a_server_that_is_gone_ends_no_training(
    tiny: LanguageModel,
    few_rows: tuple[Example, ...],
    new_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    run = new_run()
    said = train(tiny, few_rows, run, "mlflow", folder=tmp_path)
    assert said == ["mlflow gets nothing more of this training (MlflowException)"] * 2
    assert run.facts["eliminate"]["steps"] == 3
