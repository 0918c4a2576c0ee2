"""Train without padding: the rows of a batch are laid end to end, each a document that attends to itself alone.

A batch holds the same rows as a padded one, so the loss of a step is the same, without the cost of padding. On a CUDA
GPU the attention over documents of unequal length is one call of PyTorch's kernel; elsewhere it is plain attention,
document by document.

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
from sande.training.losses import IGNORE, target_positions

ATTENTION = "sande_varlen"
# Architectures whose loss and gradients, packed or behind a shared prefix, the tests compare with plainly padded ones.
# Others may carry state from one document into the next (convolutions, recurrences), or change their scores in a way
# that the kernel does not know.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


class PackedCollator:
    """Lay rows end to end as the documents of one row.

    A batch holds the decoder's inputs (`input_ids` and `position_ids` of shape (1, T), the latter from 0 in each
    document; `cu_seq_lens_q`, the R + 1 boundaries; `max_length_q`, the longest document as an int, so that no kernel
    waits for it), and `labels` (1, T) and `positions` (N,) in the format of the padding collator.
    """

    def __init__(self, documents: int) -> None:
        """Take R, the most rows of a batch, as `documents`.

        A batch with fewer rows is filled with documents of length zero. They cost nothing, and the boundaries keep one
        shape: compiled layers and captured graphs are rebuilt for each new shape.
        """
        self.documents = documents

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Return the batch of rows in the format of `sande.training.batches.features`."""
        lengths = [len(feature["input_ids"]) for feature in features]
        if len(lengths) > self.documents:
            raise ValueError(f"{len(lengths)} rows where {self.documents} were announced")
        boundaries = [0, *itertools.accumulate(lengths)]
        boundaries += boundaries[-1:] * (self.documents - len(lengths))
        # The document before must not predict a document's first token.
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
    """Return the layout of rows: the one asked for, and for `auto` packed where one kernel computes attention.

    Args:
        layout: `auto` packs on a GPU whose kernel supports this model and precision, and pads elsewhere.
        model: the model to train, on the device where it will train.
        longest: tokens of the longest row.
        precision: `bf16` or `fp32`; the kernel does not support float32.

    Raises:
        UserError: `packed` is asked for, but its loss would differ from the padded loss with this model.
    """
    if layout == "padded":
        return "padded"
    reason = obstacle(model, longest)
    if layout == "packed":
        if reason is not None:
            raise UserError(f"layout is packed, but {reason}; set it to auto")
        return "packed"
    return "packed" if reason is None and precision == "bf16" and has_kernel(model.device) else "padded"


def obstacle(model: PreTrainedModel, longest: int) -> str | None:
    """Return why packing would change the model's loss, as half a sentence; None where it does not."""
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
    """Return whether the device has a kernel for documents: FlashAttention, from the Ampere generation on."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model use the attention implementation `name` within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Return a context in which the model takes batches of `PackedCollator`, and no others."""
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
    """Return causal attention within each document; transformers builds no mask for a name that it does not know.

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
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}  # all positions before, none after
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
