"""Checkpoints inside a stage: where its trainings stand, so that another process can go on from there.

FOLDER/<nth>-<name>/<layout>/checkpoint-<step>/    the Trainer's own; whole where it has `complete.json`
FOLDER/<nth>-<name>.safetensors                    of a training that is done: the weights that it trained

The nth training of a stage is the same in every process that does the stage, as are the weights that it begins with. So
only what trains is written down, and what was merely read is read again. A layout is how the training is spread over
workers, and in which type it computes: another one cannot go on from its checkpoints, but takes what a finished
training made.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KEPT = 2  # checkpoints of a training: the last, and the one before, should the last turn out to be torn
_COMPLETE = "complete.json"


class Checkpoints:
    """Those of one stage. Rank 0 alone writes marks and finished trainings, and what it finds holds for all workers.

    Attributes:
        earlier: seconds that other processes spent on what was found.
    """

    def __init__(self, folder: Path, interval: float) -> None:
        """`interval`: seconds after which a training is written down; one that ends before writes nothing."""
        self.earlier = 0.0
        self._folder, self._interval = folder, interval
        self._trainings = 0
        self._begun = self._saved = time.perf_counter()

    def training(self, name: str, layout: str, facts: dict[str, Any]) -> Progress:
        """The stage's next training; every training of a stage has to ask for its own, in order.

        Args:
            name: of the training, for people.
            layout: how it is spread over workers.
            facts: of the stage; what is found in a checkpoint is put in.
        """
        self._trainings += 1
        return Progress(self, self._folder / f"{self._trainings}-{name}", layout, facts)

    @property
    def spent(self) -> float:
        """Seconds of the stage up to now, those of earlier processes included."""
        return self.earlier + time.perf_counter() - self._begun

    @property
    def due(self) -> bool:
        """Whether the last checkpoint, or the beginning, is an interval ago."""
        return time.perf_counter() - self._saved >= self._interval

    def saved(self) -> None:
        """A checkpoint is whole."""
        self._saved = time.perf_counter()


class Progress:
    """Of one training.

    Attributes:
        folder: where its Trainer puts checkpoints.
        earlier: seconds that other processes spent on what was found of it.
    """

    def __init__(self, checkpoints: Checkpoints, path: Path, layout: str, facts: dict[str, Any]) -> None:
        self.folder, self.earlier = path / layout, 0.0
        self._all, self._facts = checkpoints, facts
        self._begun = time.perf_counter()
        self._written = False  # or found: something of this training
        self._path, self._finished = path, path.with_name(f"{path.name}.safetensors")

    def finished(self, model: nn.Module) -> bool:
        """Whether the training is done already; then the weights that require gradients are set to what it made."""
        if not agreed(self._finished.is_file(), model):
            return False
        trained = trainable(model)
        with safe_open(self._finished, framework="pt") as file:
            self._found(json.loads(file.metadata()["mark"]))
            for name, parameter in trained.items():
                parameter.data.copy_(file.get_tensor(name))
        return True

    def latest(self, model: nn.Module) -> str | None:
        """The last whole checkpoint; what is behind it, torn or of a training that was cut off, is removed."""
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
        """Writes down the trained weights, where the training has lasted long enough; its checkpoints go."""
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
        """Within it, the Trainer saves and loads nothing but what trains, whenever it is due."""
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
        """Whether it is time for a checkpoint: the clock of rank 0 says."""
        return bool(agreed(self._all.due, model))

    def complete(self, step: int) -> None:
        """Marks the checkpoint that the Trainer, on all workers, has just written."""
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
    """Asks the Trainer for a checkpoint when one is due: where it looks at the loss, which has then been checked."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Is it due?"""
        if control.should_log and state.global_step < state.max_steps:
            control.should_save = self.progress.due(model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """All of its files are there."""
        self.progress.complete(state.global_step)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require gradients, each under one name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def rank() -> int:
    """Of this process among the workers of its stage."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: int, model: nn.Module) -> int:
    """What rank 0 says, on all workers.

    Args:
        value: of this worker.
        model: on the device on which the workers talk.
    """
    if not distributed.is_initialized():
        return value
    said = torch.tensor(int(value), device=next(model.parameters()).device)
    distributed.broadcast(said, 0)
    return int(said)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _mark(folder: Path) -> dict[str, Any] | None:
    """What was written down with a checkpoint; None where it is not whole."""
    try:
        mark: dict[str, Any] = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        return mark if all((folder / name).stat().st_size == size for name, size in mark["files"].items()) else None
    except (OSError, ValueError, KeyError):
        return None


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _flush(path: Path) -> None:
    """To disk: a rename may otherwise outlive, in a power cut, the content of what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
