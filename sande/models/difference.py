"""How many weights of a stored model are those of another one.

Weights are stored in bfloat16, so one that moved by less than half of its last digit is stored as it was. Of a model
that was trained for few steps at a low rate most are: its numbers are those of the model before.
"""

from __future__ import annotations

from pathlib import Path

from sande.models.checks import WEIGHTS

MOST = 0.5  # share of equal weights above which a training hardly counts


def unchanged(before: Path, after: Path) -> float:
    """Return the share of the weights of `after` that `before` has at the same place, from 0 to 1.

    Args:
        before: folder of safetensors.
        after: folder of safetensors of the same model, trained or pruned further.
    """
    from safetensors import safe_open

    of_before = {name: file for file in sorted(before.glob(WEIGHTS)) for name in _names(file)}
    same = total = 0
    for file in sorted(after.glob(WEIGHTS)):
        for name in _names(file):
            with safe_open(file, framework="pt") as opened:
                weight = opened.get_tensor(name)
            total += weight.numel()
            if name in of_before:
                with safe_open(of_before[name], framework="pt") as opened:
                    other = opened.get_tensor(name)
                same += int((weight == other).sum()) if weight.shape == other.shape else 0
    return same / total if total else 0.0


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())
