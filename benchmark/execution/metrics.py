"""Report stages and tokens as metrics of Ray, which each node of a cluster exports for Prometheus.

Ray adds `ray_` before a name and `_total` after that of a counter; `docs/cluster/grafana.json` shows them. The driver
counts stages, and each worker the tokens that it trains or decodes. A Ray that a run starts for itself ends with the
run, so no Prometheus can know it: there nothing is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sande.inference.counts import counted

if TYPE_CHECKING:
    from transformers import Trainer

    from benchmark.plan.stage import Stage

# Names, and what each counts. Counters grow over the runs of a grid; gauges are of the present.
DONE, FAILED, TOKENS = "sande_stages_done", "sande_stages_failed", "sande_tokens"
RUNNING, QUEUED = "sande_stages_running", "sande_stages_queued"
COUNTERS = {
    DONE: "Stages that are done",
    FAILED: "Stages that failed, or need one that failed",
    TOKENS: "Tokens trained, padding not counted, and tokens decoded in evaluations",
}
GAUGES = {
    RUNNING: "Stages that run",
    QUEUED: "Stages that are still to run",
}
TAGS = ("grid", "stage", "method")
Kind: TypeAlias = "tuple[str, str]"  # kind of stage and method: the tags of a stage


def _kind(stage: Stage) -> Kind:
    return stage.kind, stage.method


def _tags(grid: str, kind: Kind) -> dict[str, str]:
    return dict(zip(TAGS, (grid, *kind), strict=True))


class StageMetrics:
    """Stages of a run, as its driver knows them."""

    def __init__(self, grid: str) -> None:
        """Take the name of the grid; Ray must be started."""
        from ray.util.metrics import Counter as RayCounter
        from ray.util.metrics import Gauge

        self.grid = grid
        self._ended = {name: RayCounter(name, COUNTERS[name], TAGS) for name in (DONE, FAILED)}
        self._present = {name: Gauge(name, about, TAGS) for name, about in GAUGES.items()}
        self._counts: dict[str, Counter[Kind]] = {name: Counter() for name in GAUGES}

    def begin(self, stages: Collection[Stage]) -> None:
        """Record the stages that are to run from now on, in place of those before."""
        kinds = Counter(map(_kind, stages))
        for kind in {*kinds, *self._counts[QUEUED]}:
            self._change(QUEUED, kind, kinds[kind] - self._counts[QUEUED][kind])

    def started(self, stage: Stage) -> None:
        """Record that a stage of the queue runs."""
        self._change(QUEUED, _kind(stage), -1)
        self._change(RUNNING, _kind(stage), 1)

    def ended(self, stage: Stage, *, ran: bool, again: bool, failed: bool) -> None:
        """Record the end of a stage that `ran`, or that waited for another run which did it."""
        self._change(RUNNING if ran else QUEUED, _kind(stage), -1)
        if again:
            self._change(QUEUED, _kind(stage), 1)
        else:
            self._ended[FAILED if failed else DONE].inc(1, _tags(self.grid, _kind(stage)))

    def dropped(self, stage: Stage) -> None:
        """Record that a stage cannot run, since one that it needs failed."""
        self.ended(stage, ran=False, again=False, failed=True)

    def _change(self, name: str, kind: Kind, by: int) -> None:
        self._counts[name][kind] += by
        self._present[name].set(self._counts[name][kind], _tags(self.grid, kind))


def _token_counter(grid: str, stage: Stage) -> Callable[[int], None]:
    """Return a function that adds tokens of a stage to the counter of this process."""
    from ray.util.metrics import Counter as RayCounter

    counter = RayCounter(TOKENS, COUNTERS[TOKENS], TAGS).set_default_tags(_tags(grid, _kind(stage)))
    return lambda tokens: counter.inc(tokens) if tokens > 0 else None


def counting_trained(grid: str, stage: Stage) -> Callable[[Trainer], Trainer]:
    """Return a hook that makes a Trainer count the tokens of all workers; one of them uses it."""
    from transformers import TrainerCallback

    from sande.training.monitor import Monitor

    add = _token_counter(grid, stage)

    class Tokens(TrainerCallback):
        def __init__(self, after: Any) -> None:
            self._after, self._step = after, 0

        def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            """Leave out the steps that were done before this process."""
            self._step = state.global_step

        def on_log(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            """Add the tokens of the steps since the last call."""
            first = self._after[self._step - 1] if self._step else 0
            add(self._after[state.global_step - 1] - first if state.global_step else 0)
            self._step = state.global_step

    def hook(trainer: Trainer) -> Trainer:
        (monitor,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, Monitor)]
        trainer.add_callback(Tokens(monitor.tokens_after))
        return trainer

    return hook


@contextmanager
def counting_decoded(grid: str, stage: Stage, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Count what this process decodes within the block; add it at the end, and whenever a metric begins.

    Args:
        grid: name of the grid; empty: nothing is counted.
        stage: an evaluation.
        say: receives its progress, such as that a metric begins.

    Yields:
        What to use in place of `say`.
    """
    if not grid:
        yield say
        return
    add, known = _token_counter(grid, stage), 0
    with counted() as decoded:

        def flush() -> None:
            nonlocal known
            add(decoded.tokens - known)
            known = decoded.tokens

        def heard(line: str) -> None:
            flush()
            say(line)

        try:
            yield heard
        finally:
            flush()
