"""Options of `plan`: a wrong one is one line in place of the table, and the help states defaults."""

import re
from pathlib import Path

import pytest

from tests.benchmark.helpers import GridFile, invoke, mistake, run_options


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window in which no line folds, on a machine without a GPU."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--machine", "a100"), "--machine a100: no stage in"),
        (("--keep-models", "some"), "--keep-models some: no such choice; use one of: all, victims, none"),
        (("--gpus", 1, "--set", "resources.workers=2"), "--gpus 1: a stage needs 2 GPUs"),
        (("--scaling", 0.8), "--scaling: needs --gpus N, and a machine with GPUs; set --gpus, or remove --scaling"),
        (("--scaling", 0.9, "--machine", "cpu"), "--scaling: needs --gpus N, and a machine with GPUs"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_a_wrong_option_of_plan_is_one_line_and_no_table(
    grid_file: GridFile, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    asked = ["plan", grid_file(), *run_options(tmp_path), *options]
    assert said in mistake(*asked)
    assert invoke(*asked).stdout == ""


def test_plan_for_no_gpu_is_a_mistake(grid_file: GridFile, tmp_path: Path) -> None:
    assert invoke("plan", grid_file(), *run_options(tmp_path), "--gpus", 0).exit_code == 2


@pytest.mark.usefixtures("wide")
def test_plan_for_a_processor_needs_no_timings_of_the_store(grid_file: GridFile, tmp_path: Path) -> None:
    shown = invoke("plan", grid_file(), *run_options(tmp_path), "--machine", "cpu", "--why").stdout
    assert "\nForecast with 1 stage at a time (cpu): " in shown
    assert "- Forecast: 2 stages by shipped timings of the method on the model; " in shown


@pytest.mark.usefixtures("wide")
def test_help_shows_the_defaults_that_it_states(tmp_path: Path) -> None:
    texts = {
        command: " ".join(re.sub("[│ ]+", " ", invoke(command, "--help").stdout).split())
        for command in ("plan", "scan")
    }
    assert "Default: with --gpus, all devices of the store." in texts["plan"]
    assert "Default: what the store measured, else 0.9." in texts["plan"]
    assert "Default: auto." in texts["scan"]
