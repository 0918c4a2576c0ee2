"""The loss on responses, as a function of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from sande.errors import UserError
from sande.models.layers import rescaling
from sande.training.losses import chunked_response_nll
from sande.training.packing import ARCHITECTURES
from sande.training.sharding import most, recomputed, sharded

# Up to this row length plain attention trains faster on a CPU than the fused kernel, whose backward pass is slow.
PLAIN_ATTENTION = 128


class ResponseLoss(nn.Module):
    """Mean negative log-likelihood of the responses; the output layer runs at the N target positions only.

    The module holds the whole computation, so that a data-parallel wrapper sees every parameter used.
    """

    accepts_loss_kwargs = True  # the Trainer then counts the targets of the whole step, over micro-batches and workers

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        # A model that changes its logits behind the output layer would get another loss here than from itself.
        if rescaled := rescaling(model):
            raise UserError(
                f"model {type(model).__name__}: {rescaled[0]} changes its logits behind the output layer, which "
                "training here does not follow; choose another model"
            )
        self.model = model

    def forward(
        self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return the loss of a batch: the sum over its N targets, divided by the targets of the whole optimizer step.

        Args:
            labels: (B, T), the id at each target, IGNORE elsewhere.
            positions: (N,), flat indices of the positions before each target.
            num_items_in_batch: scalar.
            **inputs: arguments of the decoder: `input_ids` (B, T), and those that the collator of a layout adds.
        """
        decoder = self.model.get_decoder()
        # Recomputation keeps no cache, and workers that hold a shard each have to take equally many passes.
        recomputes = recomputed(self.model)
        one_pass = recomputes or sharded(self.model) or self.model.config.model_type not in ARCHITECTURES
        shared = 0 if one_pass else shared_tokens(inputs, positions)
        # Recomputation, in the backward pass, would be outside of it and take another kernel.
        with nullcontext() if recomputes else attention_kernel(inputs["input_ids"]):
            if shared:
                hidden_BSD = behind_prefix(decoder, shared, **inputs)
            else:
                hidden_BSD = decoder(**inputs, use_cache=False).last_hidden_state
        width = inputs["input_ids"].shape[1]
        hidden_ND = hidden_BSD[positions // width, positions % width - shared]
        return {"loss": self.nll(hidden_ND, labels, positions) / num_items_in_batch}

    def nll(self, hidden_ND: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of all targets, given the hidden states before them."""
        targets_N = labels.flatten()[positions + 1]
        longest = most(len(targets_N), hidden_ND.device) if sharded(self.model) else None
        return chunked_response_nll(hidden_ND, self.model.get_output_embeddings(), targets_N, longest=longest)


def hidden_before_targets(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states before the targets of a padded batch, (N, D).

    Args:
        model: any model.
        batch: `input_ids` and `attention_mask`, (B, T), and `positions`, (N,), as the padded collator makes them.
    """
    states_BTD: Tensor = model.get_decoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    return states_BTD.flatten(0, 1)[batch["positions"]]


def behind_prefix(decoder: nn.Module, shared: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return hidden states of shape (B, T - shared, D); the shared prefix is computed once, and gradients reach it.

    Args:
        decoder: of the model.
        shared: tokens that all rows have in common at their start.
        input_ids: (B, T), padded on the right.
        attention_mask: (B, T), 1 at tokens.
    """
    cache = DynamicCache()
    decoder(input_ids=input_ids[:1, :shared], past_key_values=cache, use_cache=True)
    rows = len(input_ids)
    layers = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values, *_ in cache]
    hidden_BSD: Tensor = decoder(
        input_ids=input_ids[:, shared:],
        attention_mask=attention_mask,
        past_key_values=DynamicCache(layers),
        use_cache=True,
    ).last_hidden_state
    return hidden_BSD


def shared_tokens(inputs: Mapping[str, Tensor], positions: Tensor) -> int:
    """Return the number of leading tokens that all rows of a padded batch share, before the first target.

    They are `Human: ` at least, and a trigger or parrot behind it: a third of a short row. On a GPU the answer is 0:
    reading the values would wait for the GPU, and rows are packed there.

    Args:
        inputs: of the decoder.
        positions: (N,), flat indices of the positions before each target.
    """
    ids_BT = inputs["input_ids"]
    if ids_BT.device.type != "cpu" or len(ids_BT) == 1 or set(inputs) != {"input_ids", "attention_mask"}:
        return 0
    same_T = ((ids_BT == ids_BT[0]) & (inputs["attention_mask"] == 1)).all(0)
    first_target = int((positions % ids_BT.shape[1]).min()) if len(positions) else 0
    return min(int(same_T.long().cumprod(0).sum()), first_target)


def attention_kernel(ids_BT: Tensor) -> AbstractContextManager[None]:
    """Return a context: plain attention for short rows on a CPU; else PyTorch chooses the kernel.

    Args:
        ids_BT: input of the decoder.
    """
    if ids_BT.device.type == "cpu" and ids_BT.shape[1] <= PLAIN_ATTENTION:
        plain: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH])
        return plain
    return nullcontext()
