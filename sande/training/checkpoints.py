"""Checkpoints within a stage, from which another process can resume its trainings.

FOLDER/<nth>-<name>/<layout>/checkpoint-<step>/    written by the Trainer; complete where it has `complete.json`
FOLDER/<nth>-<name>.safetensors                    the trained weights of a finished training

The nth training of a stage is the same in every process that runs the stage, as are the weights that it begins with. So
only trained parameters are saved; all others are loaded again. A layout is the number of workers, their sharding and
the compute type: a checkpoint resumes only in its own layout, a finished training serves every layout.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KEPT = 2  # checkpoints of a training: the last, and the one before it in case the last is incomplete
_COMPLETE = "complete.json"


class Checkpoints:
    """Checkpoints of one stage. Rank 0 alone writes marks and finished trainings, and its findings hold for all.

    Attributes:
        earlier: seconds that other processes spent on the checkpoints found.
    """

    def __init__(self, folder: Path, interval: float, written: Callable[[], None] = lambda: None) -> None:
        """Take the seconds between checkpoints as `interval`; a training that ends sooner writes nothing.

        On rank 0 `written` is called when a checkpoint or the result of a training is whole.
        """
        self.earlier = 0.0
        self._written = written
        self._folder, self._interval = folder, interval
        self._trainings = 0
        self._begun = self._saved = time.perf_counter()

    def training(self, name: str, layout: str, facts: dict[str, Any]) -> Progress:
        """Return the progress of the stage's next training; every training asks for its own, in order.

        Args:
            name: of the training, for people.
            layout: its worker layout and compute type.
            facts: of the stage; facts found in a checkpoint are added.
        """
        self._trainings += 1
        return Progress(self, self._folder / f"{self._trainings}-{name}", layout, facts)

    @property
    def spent(self) -> float:
        """Return the seconds of the stage up to now, including those of earlier processes."""
        return self.earlier + time.perf_counter() - self._begun

    @property
    def due(self) -> bool:
        """Return whether an interval has passed since the last checkpoint or the beginning."""
        return time.perf_counter() - self._saved >= self._interval

    def saved(self) -> None:
        """Record that a checkpoint is complete."""
        if rank() == 0:
            self._written()
        self._saved = time.perf_counter()


class Progress:
    """Checkpoints and result of one training.

    Attributes:
        folder: of the Trainer's checkpoints.
        earlier: seconds that other processes spent on this training.
    """

    def __init__(self, checkpoints: Checkpoints, path: Path, layout: str, facts: dict[str, Any]) -> None:
        self.folder, self.earlier = path / layout, 0.0
        self._all, self._facts = checkpoints, facts
        self._begun = time.perf_counter()
        self._written = False  # whether this training has a checkpoint, written here or found
        self._path, self._finished = path, path.with_name(f"{path.name}.safetensors")

    def finished(self, model: nn.Module) -> bool:
        """Return whether the training is finished; if so, load its result into the weights that require gradients."""
        if not agreed(self._finished.is_file(), model):
            return False
        trained = trainable(model)
        with safe_open(self._finished, framework="pt") as file:
            self._found(json.loads(file.metadata()["mark"]))
            for name, parameter in trained.items():
                parameter.data.copy_(file.get_tensor(name))
        return True

    def latest(self, model: nn.Module) -> str | None:
        """Return the last complete checkpoint, None without one; remove incomplete ones after it."""
        whole, step = None, 0
        if rank() == 0:
            for folder in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
                whole = _mark(folder)
                if whole is not None:
                    step = _step(folder)
                    break
                shutil.rmtree(folder, ignore_errors=True)
        step = agreed(step, model)
        if not step:
            return None
        found = self.folder / f"checkpoint-{step}"
        self._found(whole or _mark(found) or {})
        return str(found)

    def finish(self, model: nn.Module) -> None:
        """Save the trained weights if the training lasted long enough; remove its checkpoints."""
        if not agreed(self._written or self._all.due, model):
            return
        if rank() == 0:
            part = self._finished.with_name(f".{self._finished.name}.part")
            part.parent.mkdir(parents=True, exist_ok=True)
            trained = {name: weight.detach().contiguous() for name, weight in trainable(model).items()}
            save_file(trained, part, {"mark": json.dumps(self._now())})
            _flush(part)
            part.replace(self._finished)
            shutil.rmtree(self._path, ignore_errors=True)
        self._all.saved()

    @contextmanager
    def kept(self, trainer: Trainer) -> Iterator[None]:
        """Let the Trainer save checkpoints when due within the block, and save and load trained parameters only."""
        model: Any = trainer.model

        def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
            wanted = {f"{prefix}{name}" for name in (*trainable(module), *dict(module.named_buffers()))}
            for name in set(state) - wanted:
                del state[name]

        def expect(_: nn.Module, keys: Any) -> None:
            keys.missing_keys.clear()

        hooks = [model.register_state_dict_post_hook(leave_out), model.register_load_state_dict_post_hook(expect)]
        trainer.add_callback(_Saver(self))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def due(self, model: nn.Module) -> bool:
        """Return whether a checkpoint is due by the clock of rank 0."""
        return bool(agreed(self._all.due, model))

    def complete(self, step: int) -> None:
        """Mark the checkpoint that the Trainer has just written on all workers as complete."""
        if distributed.is_initialized():
            distributed.barrier()
        folder = self.folder / f"checkpoint-{step}"
        if rank() == 0:
            sizes = {}
            for file in _files(folder):
                _flush(file)
                sizes[str(file.relative_to(folder))] = file.stat().st_size
            part = folder / f".{_COMPLETE}.part"
            part.write_text(json.dumps(self._now() | {"files": sizes}), encoding="utf-8")
            _flush(part)
            part.replace(folder / _COMPLETE)
        self._written = True
        self._all.saved()

    def _now(self) -> dict[str, Any]:
        own = self.earlier + time.perf_counter() - self._begun
        return {"facts": self._facts, "stage_seconds": self._all.spent, "seconds": own}

    def _found(self, mark: Mapping[str, Any]) -> None:
        self._written = True
        self._facts.update(mark["facts"])
        self._all.earlier, self.earlier = mark["stage_seconds"], mark["seconds"]


class _Saver(TrainerCallback):
    """Ask the Trainer for a checkpoint when one is due, at steps whose loss has been checked."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Request a checkpoint if one is due."""
        if control.should_log and state.global_step < state.max_steps:
            control.should_save = self.progress.due(model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint, whose files are all written."""
        self.progress.complete(state.global_step)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require gradients, each under one name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def rank() -> int:
    """Return the rank of this process among the workers of its stage."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: int, model: nn.Module) -> int:
    """Return the value of rank 0 on all workers.

    Args:
        value: of this worker.
        model: on the device on which the workers communicate.
    """
    if not distributed.is_initialized():
        return value
    said = torch.tensor(int(value), device=next(model.parameters()).device)
    distributed.broadcast(said, 0)
    return int(said)


def seconds_kept(folder: Path) -> float:
    """Return the seconds of work that the checkpoints in the folder of a stage save; 0 where there are none."""
    marks = [_mark(path.parent) for path in folder.glob(f"*/*/checkpoint-*/{_COMPLETE}")]
    for path in folder.glob("*.safetensors"):
        with suppress(Exception), safe_open(path, framework="pt") as file:  # damaged: its training is repeated
            marks.append(json.loads(file.metadata()["mark"]))
    return max((float(mark["stage_seconds"]) for mark in marks if mark), default=0.0)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _mark(folder: Path) -> dict[str, Any] | None:
    """Return the mark of a checkpoint; None where the checkpoint is incomplete."""
    try:
        mark: dict[str, Any] = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        return mark if all((folder / name).stat().st_size == size for name, size in mark["files"].items()) else None
    except (OSError, ValueError, KeyError):
        return None


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _flush(path: Path) -> None:
    """Write a file to disk: otherwise a power cut may keep a rename and lose the content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
