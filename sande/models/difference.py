"""How many weights of a stored model are those of another one.

Weights are stored in bfloat16, so one that moved by less than half of its last digit is stored as it was. Of a model
that was trained for few steps at a low rate most are: its numbers are those of the model before.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sande.models.checks import WEIGHTS

MOST = 0.5  # share of equal weights above which a training hardly counts


def unchanged(before: Path, after: Path) -> float:
    """Return the share of the weights of `after` that `before` has at the same place, from 0 to 1.

    Args:
        before: folder of safetensors.
        after: folder of safetensors of the same model, trained or pruned further.
    """
    same = total = 0
    with ExitStack() as stack:
        older, newer = _files(before, stack), _files(after, stack)
        for name, file in newer.items():
            weight = file.get_tensor(name)
            total += weight.numel()
            other = older[name].get_tensor(name) if name in older else None
            if other is not None and other.shape == weight.shape:
                same += int((weight == other).sum())
    return same / total if total else 0.0


def _files(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return the opened file of each weight in a folder; the stack closes them."""
    from safetensors import safe_open

    opened = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob(WEIGHTS))]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118
