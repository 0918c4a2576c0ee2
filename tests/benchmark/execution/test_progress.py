"""What a person sees while a grid runs: what is left, in lines and in the live view, at any width."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.execution import progress, status
from benchmark.execution.progress import Lines, Live, Progress, clock
from benchmark.execution.status import Status, Writer
from benchmark.plan.stage import Stage
from sande.types import TrainingStatus
from tests.benchmark.plan.helpers import stage

HALF = TrainingStatus("eliminate", 10, 20, 0.1234, 211.4, 30.0)


@pytest.fixture
def clock_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def to(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return to


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert status.read_status(tmp_path, "a") is None
    Writer(str(tmp_path), "a").say("measuring asr")
    assert str(status.read_status(tmp_path, "a")) == "measuring asr"
    Writer(str(tmp_path), "a").watch(HALF)
    assert status.read_status(tmp_path, "a") == Status("eliminate", HALF)
    assert str(HALF) == "eliminate: step 10/20, loss 0.123, 211 tokens/s, 0:30 left"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"text": 1}', '{"text": "a", "training": {"stage": "a"}}'])
def test_a_torn_status_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert status.read_status(tmp_path, "a") is None


def test_a_training_is_written_once_a_second_and_at_its_end(tmp_path: Path, clock_at: Callable[[float], None]) -> None:
    writer = Writer(str(tmp_path), "a")
    for at, step in ((0.0, 1), (0.5, 2), (1.1, 3), (1.2, 20)):
        clock_at(at)
        writer.watch(TrainingStatus("sft", step, 20, 1.0, 1.0, 1.0))
        found = status.read_status(tmp_path, "a")
        assert found is not None
        assert found.training is not None
        assert found.training.step == {0.0: 1, 0.5: 1, 1.1: 3, 1.2: 20}[at]


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Writer(str(tmp_path / "absent"), "a").watch(HALF)
    assert not (tmp_path / "absent").exists()


def begun(expected: dict[str, float], *keys: str, at_once: int = 1) -> tuple[Progress, list[Stage]]:
    made, stages = Progress("grid", expected, at_once), [stage(key) for key in keys]
    made.begin(stages)
    return made, stages


def test_what_is_left_is_the_forecast_corrected_by_what_was_seen(clock_at: Callable[[float], None]) -> None:
    made, (first, second, third) = begun({"a": 10.0, "b": 10.0, "c": 10.0}, "a", "b", "c")
    assert made.seconds_left() == 30.0
    made.started(first)
    clock_at(4.0)
    assert made.seconds_left() == 26.0
    clock_at(20.0)
    assert made.seconds_left() == 20.0, "a stage that takes longer than forecast is about to end"
    made.ended(first)
    assert (made.done, made.total) == (1, 3)
    assert made.seconds_left() == 40.0, "here stages take twice as long"
    made.started(second)
    made.ended(second, again=True)
    assert made.done == 1
    made.dropped(["b", "c"])
    assert (made.done, made.seconds_left()) == (3, 0.0)
    del third


def test_without_a_forecast_a_stage_takes_as_long_as_those_of_its_kind(clock_at: Callable[[float], None]) -> None:
    made, (first, *_) = begun({}, "a", "b", "c")
    assert made.seconds_left() is None
    made.started(first)
    clock_at(6.0)
    made.ended(first)
    assert made.seconds_left() == 12.0


def test_stages_side_by_side_share_what_is_left_but_none_is_shorter_than_its_training(
    tmp_path: Path, clock_at: Callable[[float], None]
) -> None:
    made, (first, _) = begun({"a": 10.0, "b": 10.0}, "a", "b", at_once=2)
    assert made.seconds_left() == 10.0
    made.folder = tmp_path
    made.started(first)
    Writer(str(tmp_path), "a").watch(HALF)
    assert made.seconds_left() == 30.0


def test_in_a_pipe_a_running_stage_has_a_line_a_minute(tmp_path: Path, clock_at: Callable[[float], None]) -> None:
    said: list[str] = []
    made, (first, _) = begun({"a": 100.0, "b": 100.0}, "a", "b")
    made.folder = tmp_path
    view = Lines(made, said.append)
    made.started(first)
    for at in range(0, 130, 10):
        clock_at(float(at))
        if at == 70:
            Writer(str(tmp_path), "a").watch(HALF)
        view.refresh()
    assert [line.partition(" ")[2] for line in said] == [
        f"{first.label}: starting; about 2:20 left for the grid",
        f"{first.label}: {HALF}; about 2:10 left for the grid",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_live_view_fits_and_shows_what_runs(width: int, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    made, (first, second, _) = begun({"a": 60.0, "b": 60.0, "c": 60.0}, "a", "b", "c", at_once=2)
    view = Live(made, console)
    made.phase = "starting Ray"
    with console.capture() as captured:
        console.print(view.render())
    assert "starting Ray…" in captured.get()
    made.folder = tmp_path
    made.started(first)
    made.started(second)
    Writer(str(tmp_path), "a").watch(HALF)
    Writer(str(tmp_path), "b").say("measuring false_trigger_rate")
    with console.capture() as captured:
        console.print(view.render())
    text = captured.get()
    assert all(len(line) <= width for line in text.splitlines())
    assert len(text.splitlines()) == 3
    if width >= 80:
        for word in ("grid", "0/3 stages", "left", "eliminate", "step 10/20", "211 tokens/s"):
            assert word in text


def test_lines_of_models_and_users_are_no_markup_in_the_live_view() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = Live(Progress("grid"), console)
    with console.capture() as captured:
        view.show("[red]a[/red] [/]")
    assert captured.get() == "[red]a[/red] [/]\n"


def test_the_view_follows_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress.view(Progress(""), print), Lines), "pytest is no terminal"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.view(Progress(""), print), Live)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.view(Progress(""), print), Lines)


def test_a_clock_is_read_as_one() -> None:
    assert [clock(each) for each in (0.4, 65, 3723)] == ["0:00", "1:05", "1:02:03"]
