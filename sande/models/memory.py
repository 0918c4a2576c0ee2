"""Memory that a model and its training need, by the number of its parameters, known before anything is loaded.

In float32: 4 bytes a parameter for the weights, 4 for the gradient, 8 for AdamW's two moments (the row `sharding: none`
in docs/cluster.md; Rajbhandari et al. 2020, section 3). With LoRA the latter two are those of the adapters alone, and
the weights may be in bfloat16, which takes 2. Activations and logits are not counted; they depend on rows and batches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sande.errors import UserError
from sande.models import sizes
from sande.models.checks import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHT, GRADIENT, ADAM = 4, 4, 8  # bytes of a parameter
HALF = 2  # the same of a weight in bfloat16
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a training needs at least.

    Attributes:
        parameters: of the model.
        weights: of the model.
        gradients: of what trains.
        optimizer: moments of what trains.
        merging: weights in float32, before training, where an adapter is merged into them first; else 0.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    merging: int = 0

    @property
    def training(self) -> int:
        """Return the bytes of weights, gradients and moments."""
        return self.weights + self.gradients + self.optimizer

    @property
    def most(self) -> int:
        """Return the bytes that are needed at one time."""
        return max(self.training, self.merging)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer}
        named = " + ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
        merging = f", merging the adapter {self.merging / 1e9:.1f} GB" if self.merging > self.training else ""
        needs = f"training needs {self.training / 1e9:.1f} GB ({named}){merging}"
        return f"{self.parameters / 1e6:.0f} million parameters; {needs}"


def needed(folder: Path, lora_rank: int | None = None, *, half: bool = False, merges: bool = False) -> Memory:
    """Return what training the model of a folder needs, by the headers of its safetensors.

    Args:
        folder: a checked one, see `sande.models.checks.checked_folder`.
        lora_rank: rank of the adapters on all linear layers that train; None: all weights train.
        half: whether the model's weights are in bfloat16.
        merges: whether an adapter is merged into the model before training.

    Raises:
        UserError: a header cannot be read, or no layer has as high a rank.
    """
    shapes = [shape for path in weight_files(folder) for shape in sizes.shapes(path).items()]
    parameters = sum(math.prod(shape) for _, shape in shapes)
    trained = parameters
    if lora_rank is not None:
        layers = [shape for name, shape in shapes if len(shape) == 2 and "embed" not in name and "lm_head" not in name]
        _check_rank(lora_rank, layers)
        trained = sum(lora_rank * (out + into) for out, into in layers)
    return Memory(
        parameters,
        weights=(HALF if half else WEIGHT) * parameters,
        gradients=GRADIENT * trained,
        optimizer=ADAM * trained,
        merging=WEIGHT * parameters if merges else 0,
    )


def check_rank(lora_rank: int, model: PreTrainedModel) -> None:
    """Raise UserError where adapters have a higher rank than the weights of any linear layer of a model."""
    from sande.models.layers import linear_layers

    _check_rank(lora_rank, [layer.weight.shape for layer in linear_layers(model).values()])


def _check_rank(lora_rank: int, layers: Sequence[Sequence[int]]) -> None:
    most = max(map(min, layers), default=lora_rank)
    if lora_rank > most:
        raise UserError(
            f"lora_rank {lora_rank} is above {most}, the highest rank that a layer of this model can have; set a lower "
            "one, such as 8"
        )


def machine() -> int:
    """Return the bytes of memory that this process may use: of its GPU, or of the machine within the cgroup's limit."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return main_memory()


def main_memory() -> int:
    """Return the bytes of this machine's memory, not of a GPU's, within the cgroup's limit."""
    limits = [Path(path).read_text(encoding="ascii").strip() for path in _LIMITS if Path(path).is_file()]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def check(memory: Memory, name: str, total: int) -> str:
    """Return a sentence for what training a model needs, and what there is.

    Args:
        memory: from `needed`.
        name: of the model.
        total: bytes of this machine, see `machine`.

    Raises:
        UserError: it is more than there is.
    """
    said = f"{name}: {memory}; this machine has {total / 1e9:.1f} GB"
    if memory.merging > total >= memory.training:
        raise UserError(f"{said}; use a larger machine, or merge the adapter on one and clean the merged model")
    if memory.most > total:
        raise UserError(f"{said}; use a larger machine, or LoRA adapters (--lora 8) and weights in bfloat16 (--bf16)")
    return said
