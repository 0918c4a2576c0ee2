"""Show the progress of a run: a live view on a terminal, plain lines in a pipe or a log.

Running stages write their status into files (`benchmark.execution.status`); a thread reads them.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmark.execution.status import Status, read_status
from benchmark.io.text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from benchmark.execution.metrics import StageMetrics
    from benchmark.plan.stage import Stage


LINE_SECONDS = 60.0  # between two lines on a running stage, in a pipe
REFRESH = 0.5  # seconds, on a terminal
STARTING = "starting"

Running: TypeAlias = "tuple[Stage, float, Status | None]"  # with the seconds since it began, and its status


@dataclass
class Progress:
    """State of a run: what is done, what runs, and about how long the rest takes.

    Attributes:
        grid: name of the grid.
        expected: predicted seconds of each stage by key; empty where no prediction is possible.
        at_once: stages that run at a time.
        metrics: gets the same events; None where nothing collects metrics.
    """

    grid: str
    expected: Mapping[str, float] = field(default_factory=dict)
    at_once: int = 1
    phase: str = ""
    folder: Path | None = None  # of the status files
    total: int = 0
    done: int = 0
    metrics: StageMetrics | None = None
    _began: float = field(default_factory=time.monotonic)
    _running: dict[str, tuple[Stage, float]] = field(default_factory=dict)
    _waiting: dict[str, Stage] = field(default_factory=dict)
    _took: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, stages: Collection[Stage]) -> None:
        """Note the stages that are to run from now on."""
        self._waiting = {stage.key: stage for stage in stages}
        self.total = self.done + len(stages)
        if self.metrics:
            self.metrics.begin(stages)

    def started(self, stage: Stage) -> None:
        """Note that a stage runs."""
        self.phase = ""
        self._waiting.pop(stage.key, None)
        self._running[stage.key] = stage, time.monotonic()
        if self.metrics:
            self.metrics.started(stage)

    def ended(self, stage: Stage, again: bool = False, failed: bool = False) -> None:
        """Note that a stage no longer runs: it is done, has failed, or will be tried again."""
        if self.metrics:
            self.metrics.ended(stage, ran=stage.key in self._running, again=again, failed=failed)
        _, began = self._running.pop(stage.key, (stage, time.monotonic()))
        if again:
            self._waiting[stage.key] = stage
            return
        self._waiting.pop(stage.key, None)
        self.done += 1
        took = time.monotonic() - began
        self._took[stage.kind].append((took, self.expected.get(stage.key, 0.0)))

    def dropped(self, keys: Collection[str]) -> None:
        """Note stages that will not run since one that they need failed."""
        for key in keys:
            if stage := self._waiting.pop(key, None):
                self.done += 1
                if self.metrics:
                    self.metrics.dropped(stage)

    @property
    def running(self) -> list[Running]:
        """Return the stages that run, the seconds since each began, and its status."""
        now = time.monotonic()
        return [
            (stage, now - began, read_status(self.folder, key) if self.folder else None)
            for key, (stage, began) in list(self._running.items())
        ]

    @property
    def elapsed(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._began

    def seconds_left(self, running: Sequence[Running] | None = None) -> float | None:
        """Return about how many seconds the stages still take; None while some of them cannot be predicted.

        Predictions are scaled by how long stages of the same kind took here; a stage without one takes as long as
        the others of its kind did.

        Args:
            running: value of that property, if the caller has it: the property reads a file for each stage.
        """
        left = [self._seconds(stage) for stage in list(self._waiting.values())]
        longest = 0.0
        for stage, since, status in self.running if running is None else running:
            training = status.training if status else None
            known = self._seconds(stage)
            rest = max(0.0, known - since) if known is not None else None
            if training:  # a method may have several trainings, so the rest is at least that of the one that runs
                rest = max(training.seconds_left, rest or 0.0)
            left.append(rest)
            longest = max(longest, rest or 0.0)
        known_left = [seconds for seconds in left if seconds is not None]
        return max(longest, sum(known_left) / self.at_once) if len(known_left) == len(left) else None

    def _seconds(self, stage: Stage) -> float | None:
        took, expected = self._took[stage.kind], self.expected.get(stage.key)
        if not took:
            return expected
        if expected and all(forecast for _, forecast in took):
            return expected * sum(seconds for seconds, _ in took) / sum(forecast for _, forecast in took)
        return statistics.mean(seconds for seconds, _ in took)


class Lines:
    """Print plain lines: one at a stage's end, and one a minute for each that runs."""

    def __init__(self, progress: Progress, echo: Callable[[str], None]) -> None:
        self.progress = progress
        self._echo = echo
        self._printed: dict[str, float] = {}

    def show(self, line: str) -> None:
        """Print a line as it is."""
        self._echo(line)

    def say(self, line: str) -> None:
        """Print a line with the time of day."""
        self._echo(f"{time.strftime('%H:%M:%S')} {line}")

    def refresh(self) -> None:
        """Print a line for each stage that has had none for a minute."""
        running = self.progress.running
        left = self.progress.seconds_left(running)
        for stage, since, status in running:
            if since - self._printed.get(stage.key, 0.0) >= LINE_SECONDS:
                self._printed[stage.key] = since
                rest = f"; about {clock(left)} left for the grid" if left is not None else ""
                self.say(f"{stage.label}: {status or STARTING}{rest}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Refresh within the block."""
        with _repeated(self.refresh, REFRESH):
            yield


class Live:
    """Draw the grid and each running stage below the lines, twice a second."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        self._console = console

    def show(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(visible(line), markup=False, highlight=False)

    def say(self, line: str) -> None:
        """Print a line with the time of day above the view."""
        self.show(f"{time.strftime('%H:%M:%S')} {line}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the view within the block; other output appears above it."""
        from rich.live import Live as RichLive

        with RichLive(
            get_renderable=self.render, console=self._console, refresh_per_second=1 / REFRESH, transient=True
        ):
            yield

    def render(self) -> RenderableType:
        """Return the view as it is now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        state, running = self.progress, self.progress.running
        left = state.seconds_left(running)
        rest = f"about {clock(left)} left" if left is not None and state.total else ""
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis")
        head.add_column(ratio=1, min_width=8)
        head.add_column(no_wrap=True, justify="right")
        numbers = f"{state.done}/{state.total} stages" if state.total else ""
        words = ", ".join(filter(None, (numbers, f"{clock(state.elapsed)} elapsed", rest)))
        head.add_row(Text(visible(state.grid), style="bold"), ProgressBar(max(1, state.total), state.done), Text(words))
        if not running:
            return Group(head, Text(f"  {state.phase or STARTING}…", style="dim"))
        body = Table.grid(padding=(0, 2), expand=True)
        body.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for width in (8, 12, 14, 8):
            body.add_column(no_wrap=True, justify="right", min_width=width)
        for stage, since, status in running:
            training = status.training if status else None
            doing = [training.stage if training else str(status.text if status else STARTING)]
            doing += [f"step {training.step}/{training.steps}"] if training else [""]
            doing += [f"{training.tokens_per_second:.0f} tokens/s"] if training else [""]
            body.add_row(
                Text(visible(f"  {stage.short_label}")),
                *(Text(visible(word)) for word in doing),
                Text(clock(since), style="dim"),
            )
        return Group(head, body)


def view(progress: Progress, echo: Callable[[str], None]) -> Lines | Live:
    """Return the view that suits the standard output."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return Lines(progress, echo)
    from rich.console import Console

    return Live(progress, Console())


def clock(seconds: float) -> str:
    """Return `4:05`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _repeated(work: Callable[[], Any], every: float) -> Iterator[None]:
    """Repeat some work in a thread of its own until the block ends."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
