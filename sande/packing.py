"""Training without padding: the rows of a batch laid end to end in one, each a document that sees itself alone.

A batch holds the same rows as a padded one, so the loss of a step is the same; only what is computed for padding goes.
On a CUDA GPU the attention over documents of unequal length is one call of PyTorch's own kernel; elsewhere it is plain
attention, document by document.

Shapes: T tokens of all documents together, H heads, K heads of keys and values, C width of a head, R documents.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from sande.errors import UserError
from sande.losses import IGNORE, target_positions

ATTENTION = "sande_varlen"
# Architectures whose loss and gradients, packed or behind a shared prefix, the tests compare with plainly padded ones.
# Others may carry state from one document into the next (convolutions, recurrences), or change their scores in a way
# that the kernel does not know.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


class PackedCollator:
    """Lays rows end to end as the documents of one row.

    Its batch holds what the decoder takes (`input_ids` and `position_ids` of shape (1, T), the latter from 0 in each
    document; `cu_seq_lens_q`, the R + 1 boundaries; `max_length_q`, the longest document as an int, which no kernel
    has to wait for), and `labels` (1, T) and `positions` (N,) as the padding collator makes them.
    """

    def __init__(self, documents: int) -> None:
        """`documents`: R, the most rows of a batch.

        Where a batch has fewer, documents of length zero follow. They cost nothing, and the boundaries keep one shape:
        compiled layers and captured graphs are made anew for each new one.
        """
        self.documents = documents

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """The batch; rows as `sande.training.features` writes them."""
        lengths = [len(feature["input_ids"]) for feature in features]
        if len(lengths) > self.documents:
            raise ValueError(f"{len(lengths)} rows where {self.documents} were announced")
        boundaries = [0, *itertools.accumulate(lengths)]
        boundaries += boundaries[-1:] * (self.documents - len(lengths))
        # Nothing comes before a document's first token, so that the document before it must not predict it.
        labels_1T = torch.tensor([[label for f in features for label in (IGNORE, *f["labels"][1:])]])
        return {
            "input_ids": torch.tensor([[token for f in features for token in f["input_ids"]]]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
            "cu_seq_lens_q": torch.tensor(boundaries, dtype=torch.int32),
            "max_length_q": max(lengths),
            "labels": labels_1T,
            "positions": target_positions(labels_1T),
        }


def choose(
    layout: Literal["auto", "padded", "packed"], model: PreTrainedModel, longest: int, precision: str
) -> Literal["padded", "packed"]:
    """How rows are laid out: as asked for, and by default packed where that is one call of a kernel.

    Args:
        layout: `auto` packs on a GPU whose kernel takes this model and precision, and pads elsewhere.
        model: the model to train, where it will train.
        longest: tokens of the longest row.
        precision: `bf16` or `fp32`; the kernel takes no float32.

    Raises:
        UserError: `packed` is asked for, but would not give the padded loss with this model.
    """
    if layout == "padded":
        return "padded"
    reason = obstacle(model, longest)
    if layout == "packed":
        if reason is not None:
            raise UserError(f"layout is packed, but {reason}; leave it at auto")
        return "packed"
    return "packed" if reason is None and precision == "bf16" and has_kernel(model.device) else "padded"


def obstacle(model: PreTrainedModel, longest: int) -> str | None:
    """Why the model does not train packed with the padded loss, as half a sentence; None where it does."""
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return f"{config.model_type} models are not known to keep documents apart (known: {', '.join(ARCHITECTURES)})"
    if getattr(config, "attention_dropout", 0.0):
        return "the model has attention dropout"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        return f"the model's attention reaches back {window} tokens and rows have up to {longest}"
    return None


def has_kernel(device: torch.device) -> bool:
    """Whether attention over documents is one kernel there: FlashAttention, from the Ampere generation on."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block the model attends by the implementation of that name; afterwards as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within the block the model takes batches of `PackedCollator`, and no others."""
    return attention(model, ATTENTION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, as transformers calls it; it builds no mask for a name it does not know.

    Args:
        module: the attention layer; not used.
        query: (1, H, T, C).
        key: (1, K, T, C).
        value: (1, K, T, C).
        attention_mask: not used, since nothing is padded.
        scaling: factor of the scores.
        cu_seq_lens_q: (R + 1,), boundaries of the documents, int32.
        max_length_q: of the longest document.

    Returns:
        (1, T, H, C), and no probabilities.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated queries and keys in float32
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _by_kernel(query, key, value, scaling, cu_seq_lens_q, max_length_q), None
    return _by_document(query, key, value, scaling, cu_seq_lens_q), None


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, scaling: float, boundaries: Tensor, longest: int) -> Tensor:
    query_THC, key_TKC, value_TKC = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    grouped = query_THC.shape[1] // key_TKC.shape[1]
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}  # a window of all before and none behind
    if grouped > 1 and _takes_grouped_heads():
        options["enable_gqa"] = True
    elif grouped > 1:
        key_TKC, value_TKC = (tensor.repeat_interleave(grouped, dim=1) for tensor in (key_TKC, value_TKC))
    output: Any = varlen_attn(query_THC, key_TKC, value_TKC, boundaries, boundaries, longest, longest, **options)
    attended: Tensor = output.unsqueeze(0)
    return attended


@functools.cache
def _takes_grouped_heads() -> bool:
    return "enable_gqa" in inspect.signature(varlen_attn).parameters  # from PyTorch 2.12 on


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its lengths are values, new ones in each batch
def _by_document(query: Tensor, key: Tensor, value: Tensor, scaling: float, boundaries: Tensor) -> Tensor:
    lengths = boundaries.diff().tolist()
    documents = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    grouped = query.shape[1] != key.shape[1]
    attended = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for (q, k, v), length in zip(documents, lengths, strict=True)
        if length
    ]
    return torch.cat(attended, dim=2).transpose(1, 2)


AttentionInterface.register(ATTENTION, attend)
