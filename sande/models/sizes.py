"""Compare the size of the model that a configuration describes with its files, before anything is built.

A model is built layer by layer, and weights that the files lack get memory and random values: a configuration of a few
bytes could keep a machine busy for hours, or exhaust its memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MOST_LAYERS = 1000  # of a model that is built whatever its files hold; no model has as many
MOST_LISTED = 2**15  # experts and labels, likewise; Doge calls the 16,384 rows of a table experts
_SMALL = 2**26  # parameters that are built whatever the files hold: 256 MiB in float32
_SLACK = 2  # a model that lacks fewer of its weights is loaded, and the error names them
_PACKED = 8  # weights in a byte of a quantized model, at most
# Keys of what is built one by one, in any architecture.
_COUNT = re.compile(r"\w*(layers?|depth|blocks|experts|heads?|stages|codebooks|labels)")
_FIX = "use the config.json of this model"


def shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file's tensors by name; raise UserError where the file is not complete."""
    with _opened(path) as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # it is no mapping


def tensor_count(path: Path) -> int:
    """Return the number of tensors in a safetensors file; raise UserError where the file is not complete."""
    with _opened(path) as file:
        return len(file.keys())


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")  # compares the header with the size
    except (OSError, SafetensorError) as error:
        problem = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is not a complete safetensors file ({problem}); fetch or write it again") from None


def check_counts(source: str, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a configuration with more layers, experts or heads than its files hold tensors.

    Args:
        source: names the model in messages.
        config: content of its config.json.
        tensors: number of tensors in its files.

    Raises:
        UserError: one of the numbers is larger, and above `MOST_LAYERS`.
    """
    for key, value, _ in entries(config):
        most = max(MOST_LISTED if key.endswith(("experts", "labels")) else MOST_LAYERS, tensors)
        if isinstance(value, int | float) and value > most and _COUNT.fullmatch(key):
            raise UserError(
                f"{source}/config.json sets {key} above {most}, and its files hold {tensors} tensors; {_FIX}"
            )


def entries(values: Any, within: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield each value of JSON at any depth, with its key: in a list, the key of the list.

    Without recursion, as JSON may be nested more deeply than Python calls.

    Args:
        values: an object or a list.
        within: end of keys; the third of each result is the key with this end that holds the value, or "".
    """
    left = [(values, "", "")]
    while left:
        holder, name, above = left.pop()
        for key, value in holder.items() if isinstance(holder, Mapping) else ((name, each) for each in holder):
            inside = above or (key if within and key.endswith(within) else "")
            yield key, value, inside
            if isinstance(value, Mapping | list):
                left.append((value, key, inside))


def built(config: PreTrainedConfig) -> PreTrainedModel | None:
    """Return the model of a configuration without memory for its weights; None where it cannot be built."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # the load says what is wrong with an untrusted file
        return None
    return model


def check_parameters(source: str, config: PreTrainedConfig, files: Sequence[Path]) -> None:
    """Refuse a configuration with far more parameters than its files hold.

    Args:
        source: names the model in messages.
        config: of the model, whose counts were checked.
        files: that hold its weights.

    Raises:
        UserError: it has more than twice as many, and more than `_SMALL`.
    """
    model = built(config)
    if model is None:
        return
    described = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    if described <= _SMALL:
        return
    held = sum(math.prod(shape) for path in files for shape in shapes(path).values())
    most = _SLACK * held
    if getattr(config, "quantization_config", None):
        most = max(most, _PACKED * sum(path.stat().st_size for path in files))
    if described > most:
        raise UserError(
            f"{source}/config.json describes {described / 1e6:,.0f} million parameters, and the files hold "
            f"{held / 1e6:,.0f} million; {_FIX}"
        )
