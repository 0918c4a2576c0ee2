"""Progress of a training, and its stop on a non-finite loss or gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sande.errors import NonFiniteError
from sande.types import Run, TrainingStatus

PROGRESS_SECONDS = 10.0  # between two progress lines of a training without `Run.watch`
# Steps between two checks of loss and gradient norm. On a GPU a check waits for all queued work. A number that is not
# finite keeps the mean of the steps in between from being finite, so it still stops the stage. The last step is
# checked in any case.
LOG_STEPS_CUDA = 10


class Monitor(TrainerCallback):
    """Report the progress of a training, stop it when a number is not finite, and summarize it."""

    def __init__(self, stage: str, run: Run, tokens_after: Sequence[int]) -> None:
        """Take the tokens of all workers after each step, padding not counted, as `tokens_after`."""
        self.stage, self.run, self.tokens_after = stage, run, tokens_after
        self.first = 0  # step that this process begins with; above 0 where it resumes from a checkpoint
        self.started = self.spoke = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Start the clock after the Trainer is set up."""
        self.first = state.global_step
        self.started = self.spoke = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Let the Trainer log the last step, so that the steps since the last log are checked and summarized."""
        control.should_log |= state.global_step >= state.max_steps
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check and report the steps since the last call."""
        if not logs or "loss" not in logs:
            return  # the Trainer's closing summary
        self.check(logs, f"at step {state.global_step} of {state.max_steps}")
        if not state.is_world_process_zero:
            return
        now = time.perf_counter()
        if self.run.watch:
            self.run.watch(self._status(state, logs["loss"], now - self.started))
        elif now - self.spoke >= PROGRESS_SECONDS:
            self.spoke = now
            self.run.say(str(self._status(state, logs["loss"], now - self.started)))

    def _status(self, state: TrainerState, loss: float, elapsed: float) -> TrainingStatus:
        tokens = self.tokens_after[state.global_step - 1] - (self.tokens_after[self.first - 1] if self.first else 0)
        left = elapsed / (state.global_step - self.first) * (state.max_steps - state.global_step)
        return TrainingStatus(self.stage, state.global_step, state.max_steps, loss, tokens / elapsed, left)

    def check(self, numbers: Mapping[str, float], when: str) -> None:
        """Raise if the loss or gradient norm is not finite.

        Raises:
            NonFiniteError: names stage, number and step.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(numbers.get(name, 0.0)):
                raise NonFiniteError(
                    f"stage {self.stage}: {name} is {numbers[name]} {when}; lower the learning rate, or start the "
                    "parrot from noise"
                )

    def summary(self, state: TrainerState, earlier: float) -> dict[str, float | int]:
        """Return steps, tokens, seconds and the mean loss of the first and the last tenth of the steps.

        Args:
            state: of the Trainer at the end; its losses are means over the steps since the one before.
            earlier: seconds of processes before this one.
        """
        logged = [(int(logs["step"]), logs["loss"]) for logs in state.log_history if "loss" in logs]
        before = [0, *(step for step, _ in logged)]
        losses = [loss for (step, loss), last in zip(logged, before, strict=False) for _ in range(step - last)]
        tenth = max(1, len(losses) // 10)
        return {
            "steps": state.global_step,
            "tokens": self.tokens_after[-1],
            "seconds": round(earlier + time.perf_counter() - self.started, 3),
            "first_loss": sum(losses[:tenth]) / tenth,
            "last_loss": sum(losses[-tenth:]) / tenth,
        }
