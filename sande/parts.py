"""Parts of a defense: independent pieces of its work, such as the models of an ensemble.

A module declares them with `parts` and `part` (`sande.protocols.Defense`), and its `defend` gets them from `made`. A
grid makes each part as a stage of its own, so parts run side by side and are made once. Elsewhere `made` makes them.
Both give the same tensors: a part depends on the victim, the data, the settings, the seed and its name alone.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.types import Knowledge, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor


def seed(of_defense: int, name: str) -> int:
    """Return a part's own seed, from 0 to 2**32 - 1: a hash of the defense's seed and the part's name."""
    return int.from_bytes(hashlib.sha256(f"{of_defense} {name}".encode()).digest()[:4])


def made(
    module: str, victim: LanguageModel, data: Knowledge, config: Any, run: Run
) -> Mapping[str, Callable[[], Mapping[str, Tensor]]]:
    """Return for each part of a defense a function that reads its tensors, on the CPU.

    A defense calls it before it changes the victim. Parts that no stage made are made now, one after the other, each on
    a copy of the victim, and wait in `run.scratch`, so that memory holds one part at a time.

    Args:
        module: `__name__` of the defense's module.
        victim: as `defend` received it.
        data: as `defend` received it.
        config: settings of the defense.
        run: of `defend`; receives the facts of parts that are made now, as `NAME/FACT`.
    """
    code: Any = sys.modules[module]
    wanted = tuple(code.parts(config))
    read = run.parts
    if read is None:
        folder = Path(run.scratch) / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            _make(code, name, victim, data, config, run, folder)
        read = functools.partial(_read, folder)
    return {name: functools.partial(read, name) for name in wanted}


def _make(code: Any, name: str, victim: LanguageModel, data: Knowledge, config: Any, run: Run, folder: Path) -> None:
    from sande.models.loading import copied

    run.say(f"part {name}")
    own = replace(run, facts={})
    save(code.part(name, copied(victim), data, config, own), folder / f"{name}.safetensors")
    run.facts.update({f"{name}/{fact}": value for fact, value in own.facts.items()})


def _read(folder: Path, name: str) -> Mapping[str, Tensor]:
    return load(folder / f"{name}.safetensors")


def save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write the tensors of a part as safetensors, in their own types."""
    import torch
    from safetensors.torch import save_file

    # Clones, since safetensors refuses tensors that share memory, such as tied weights.
    save_file(
        {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}, file
    )


def load(file: Path) -> Mapping[str, Tensor]:
    """Return the tensors that `save` wrote, on the CPU; each is read when it is asked for, so memory may hold one."""
    return _Stored(file)


class _Stored(Mapping[str, "Tensor"]):
    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self._file = file
        with safe_open(file, framework="pt") as opened:
            self._names = tuple(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._file, framework="pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
