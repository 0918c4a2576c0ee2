"""Report loss, gradient norm and learning rate of every training to trackers while it runs.

TensorBoard's files are in STORE/tracking/<stage>/<training>, for `tensorboard --logdir STORE/tracking`. MLflow and
Weights & Biases are services that find their server by variables of their own. No tracker can end a stage: one that
fails is reported once, and gets nothing more.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.grid.resources import Tracker
from sande.errors import UserError
from sande.permissions import share_new_folder

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback


PROJECT = "sande-bench"  # where the user gives no name
_NAMED = {"mlflow": "MLFLOW_EXPERIMENT_NAME", "wandb": "WANDB_PROJECT"}
_PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def check(trackers: Sequence[Tracker]) -> None:
    """Refuse trackers that cannot work.

    Raises:
        UserError: one is not installed, or the address of MLflow's server is not set.
    """
    for tracker in trackers:
        if importlib.util.find_spec(_PACKAGES[tracker]) is None:
            raise UserError(
                f"resources.report_to: {tracker} is not installed; run pip install 'sande-bench[{tracker}]', or remove "
                "it from the list"
            )
    if "mlflow" in trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "resources.report_to: mlflow needs MLFLOW_TRACKING_URI; set it to the server's address, such as "
            "http://127.0.0.1:5000"
        )


def reporting(
    trackers: Sequence[Tracker], folder: Path, label: str, say: Callable[[str], None]
) -> Callable[[Trainer], Trainer]:
    """Return a hook that makes a Trainer report to each of the trackers.

    Args:
        trackers: names of trackers.
        folder: for files of TensorBoard.
        label: label of the stage.
        say: receives a line about a tracker that fails.
    """
    with suppress(OSError):  # then the tracker reports it
        share_new_folder(folder)
    for tracker, variable in _NAMED.items():
        if tracker in trackers:
            os.environ.setdefault(variable, PROJECT)

    def hook(trainer: Trainer) -> Trainer:
        from sande.training.monitor import Monitor

        (name,) = [each.stage for each in trainer.callback_handler.callbacks if isinstance(each, Monitor)]
        trainer.args.run_name = f"{label} {name}"
        for tracker in trackers:
            trainer.add_callback(_forgiving(tracker, folder / label.replace(" ", "-") / name, say))
        return trainer

    return hook


def _forgiving(tracker: Tracker, folder: Path, say: Callable[[str], None]) -> TrainerCallback:
    """Return Transformers' callback for a tracker, which is not called again after its first error."""
    from transformers import TrainerCallback

    class Forgiving(TrainerCallback):
        def __init__(self) -> None:
            self._made: TrainerCallback | None = None
            self._failed = False

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """Start a run of the tracker."""
            self._do("on_train_begin", *args, **kwargs)

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            """Pass numbers on."""
            self._do("on_log", *args, **kwargs)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            """End the run of the tracker."""
            self._do("on_train_end", *args, **kwargs)

        def _do(self, event: str, *args: Any, **kwargs: Any) -> None:
            if self._failed:
                return
            try:
                self._made = self._made or _callback(tracker, folder)
                getattr(self._made, event)(*args, **kwargs)
                if tracker == "wandb" and event == "on_train_end":  # else the next training continues the same run
                    importlib.import_module("wandb").finish(quiet=True)
            except Exception as error:
                # Without its text, which may hold an address with a password.
                self._failed = True
                say(f"{tracker} gets nothing more of this training ({type(error).__name__})")

    return Forgiving()


def _callback(tracker: Tracker, folder: Path) -> TrainerCallback:
    known: Any = importlib.import_module("transformers.integrations")
    made: TrainerCallback
    if tracker == "tensorboard":
        made = known.TensorBoardCallback(importlib.import_module("tensorboardX").SummaryWriter(str(folder)))
    elif tracker == "mlflow":
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        # Else MLflow tries for minutes, at every step, to reach a server that is down.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        made = known.MLflowCallback()
    else:
        os.environ.setdefault("WANDB_SILENT", "true")
        made = known.WandbCallback()
    return made
