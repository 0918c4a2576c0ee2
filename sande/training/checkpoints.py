"""Checkpoints within a stage, from which another process can resume its trainings.

FOLDER/<nth>-<name>/<layout>/checkpoint-<step>/    written by the Trainer; complete where it has `complete.json`
FOLDER/<nth>-<name>.safetensors                    the trained weights of a finished training

The nth training of a stage is the same in every process that runs the stage, as are the weights that it begins with. So
only trained parameters are saved; all others are loaded again. A layout is the number of workers, their sharding and
the compute type: a checkpoint resumes only in its own layout, a finished training serves every layout.

Workers may be on machines with disks of their own. There rank 0 sends the others what they lack of the checkpoint that
it chose, all but shards: a worker without its own shard makes all of them leave that checkpoint out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KEPT = 2  # checkpoints of a training: the last, and the one before it in case the last is incomplete
_COMPLETE = "complete.json"
_SHARD = re.compile(r"(?<=pp_rank_)\d+(?=_)")  # in the names of DeepSpeed's files: the one worker that needs the file
_CHUNK = 2**26  # bytes that rank 0 sends at once


class Checkpoints:
    """Checkpoints of one stage. Rank 0 alone writes marks and finished trainings, and its findings hold for all.

    Attributes:
        earlier: seconds that other processes spent on the checkpoints found.
        say: receives a sentence where a checkpoint cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        interval: float,
        written: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Take the seconds between checkpoints as `interval`; a training that ends sooner writes nothing.

        On rank 0 `written` is called when a checkpoint or the result of a training is whole, and `say` with a sentence
        where a checkpoint cannot be used.
        """
        self.earlier = 0.0
        self.say = say
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
        own = _made(self._finished)
        mark = told(own, model)
        if mark is None:
            return False
        _send([self._finished], own != mark, model)
        trained = trainable(model)
        self._found(mark)
        with safe_open(self._finished, framework="pt") as file:
            for name, parameter in trained.items():
                parameter.data.copy_(file.get_tensor(name))
        return True

    def latest(self, model: nn.Module) -> str | None:
        """Return the last complete checkpoint that all workers can use, None without one; remove those after it."""
        left_out: list[Path] = []
        chosen: Path | None = None
        for step, mark in told(self._whole() if rank() == 0 else [], model):
            folder = self.folder / f"checkpoint-{step}"
            if everywhere(_has_shards(folder, mark), model):
                chosen = folder
                break
            left_out.append(folder)
        if rank() == 0:
            self._leave_out(left_out, chosen)
        if chosen is None:
            return None
        _send([*(chosen / name for name in _common(mark)), chosen / _COMPLETE], _lacks(chosen, mark), model)
        self._found(mark)
        return str(chosen)

    def _whole(self) -> list[tuple[int, dict[str, Any]]]:
        """Return steps and marks of the complete checkpoints, the last first; remove incomplete ones after them."""
        found: list[tuple[int, dict[str, Any]]] = []
        for folder in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            mark = _mark(folder)
            if mark is not None:
                found.append((_step(folder), mark))
            elif not found:
                shutil.rmtree(folder, ignore_errors=True)
        return found

    def _leave_out(self, folders: list[Path], instead: Path | None) -> None:
        """Remove checkpoints that not all workers have, which the training writes anew, and say so."""
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if folders:
            then = f"it goes on from {instead.name}" if instead else "it begins anew"
            names = ", ".join(folder.name for folder in folders)
            self._all.say(f"{self._path.name}: a worker does not have its shard of {names} on its machine; {then}")

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
        folder = self.folder / f"checkpoint-{step}"
        for shard in folder.rglob(f"*pp_rank_{rank()}_*"):  # rank 0 may be on a machine that does not see it
            _flush(shard)
        if distributed.is_initialized():
            distributed.barrier()
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
    return _combined(value, model, lambda said: distributed.broadcast(said, 0))


def told(value: Any, model: nn.Module) -> Any:
    """Return any object of rank 0 on all workers.

    Args:
        value: of this worker.
        model: on the device on which the workers communicate.
    """
    if not distributed.is_initialized():
        return value
    said = [value]
    distributed.broadcast_object_list(said, 0, device=next(model.parameters()).device)
    return said[0]


def everywhere(value: bool, model: nn.Module) -> bool:
    """Return whether the value is true on all workers.

    Args:
        value: of this worker.
        model: on the device on which the workers communicate.
    """
    return bool(_combined(value, model, lambda said: distributed.all_reduce(said, distributed.ReduceOp.MIN)))


def _combined(value: int, model: nn.Module, combine: Callable[[Tensor], Any]) -> int:
    """Return what an operation among the workers makes of a number of each; without other workers the number."""
    if not distributed.is_initialized():
        return value
    said = torch.tensor(int(value), device=next(model.parameters()).device)
    combine(said)
    return int(said)


def seconds_kept(folder: Path) -> float:
    """Return the seconds of work that the checkpoints in the folder of a stage save; 0 where there are none."""
    marks = [_mark(path.parent) for path in folder.glob(f"*/*/checkpoint-*/{_COMPLETE}")]
    marks += [_made(path) for path in folder.glob("*.safetensors")]
    return max((float(mark["stage_seconds"]) for mark in marks if mark), default=0.0)


def _send(files: list[Path], lacks: bool, model: nn.Module) -> None:
    """Write files of rank 0 on the machines of all workers that lack them; do nothing where no worker does.

    Args:
        files: which have the same paths on all machines; the last is written when the others are whole.
        lacks: whether this worker lacks any of them.
        model: on the device on which the workers communicate.

    Raises:
        OSError: a file cannot be read or written.
    """
    if everywhere(not lacks, model):
        return
    # One worker of a machine writes for all of them.
    writes = lacks and os.environ.get("LOCAL_RANK", "0") == "0"
    for path in files:
        part = path.with_name(f".{path.name}.part")
        if writes:
            part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") if writes else nullcontext() as target:
            for chunk in _chunks(path, model):
                if target:
                    target.write(chunk)
        if writes:
            _flush(part)
            part.replace(path)
    distributed.barrier()  # until then the others of a machine may find half of them


def _chunks(path: Path, model: nn.Module) -> Iterator[bytes]:
    """Yield the bytes of a file of rank 0, on all workers."""
    device, size = next(model.parameters()).device, told(path.stat().st_size if rank() == 0 else 0, model)
    with path.open("rb") if rank() == 0 else nullcontext() as source:
        for start in range(0, size, _CHUNK):
            length = min(_CHUNK, size - start)
            read = bytearray(source.read(length) if source else length)
            chunk = torch.frombuffer(read, dtype=torch.uint8).to(device)
            distributed.broadcast(chunk, 0)
            yield chunk.cpu().numpy().tobytes()


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _mark(folder: Path) -> dict[str, Any] | None:
    """Return the mark of a checkpoint; None where the checkpoint is incomplete."""
    try:
        mark: dict[str, Any] = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        return mark if all((folder / name).stat().st_size == size for name, size in mark["files"].items()) else None
    except (OSError, ValueError, KeyError):
        return None


def _made(finished: Path) -> dict[str, Any] | None:
    """Return the mark of a finished training; None where there is none, or where it is damaged and repeated."""
    with suppress(Exception), safe_open(finished, framework="pt") as file:
        mark: dict[str, Any] = json.loads(file.metadata()["mark"])
        return mark
    return None


def _has_shards(folder: Path, mark: Mapping[str, Any]) -> bool:
    """Return whether this worker has the shards of its own that belong to those of rank 0."""
    shards = [name for name in mark["files"] if (found := _SHARD.search(name)) and found[0] == "0"]
    return all((folder / _SHARD.sub(str(rank()), name)).is_file() for name in shards)


def _common(mark: Mapping[str, Any]) -> dict[str, int]:
    """Return the files, and their bytes, that all workers need."""
    return {name: size for name, size in mark["files"].items() if not _SHARD.search(name)}


def _lacks(folder: Path, mark: Mapping[str, Any]) -> bool:
    """Return whether this machine lacks the checkpoint that has this mark, or files of it that all workers need."""
    try:
        if json.loads((folder / _COMPLETE).read_text(encoding="utf-8")) != mark:
            return True  # of another process, which came to the same step
        return any((folder / name).stat().st_size != size for name, size in _common(mark).items())
    except (OSError, ValueError):
        return True


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _flush(path: Path) -> None:
    """Write a file to disk: otherwise a power cut may keep a rename and lose the content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
