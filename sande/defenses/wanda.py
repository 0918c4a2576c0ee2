r"""Wanda: prune the weights that matter least to clean rows; no training (Sun et al. 2024, ICLR).

    S_ij = |W_ij| * ||X_j||_2 ,    W_ij = 0 where S_ij is among the `sparsity` smallest of its output i

where X_j holds the j-th input of a linear layer over all tokens of the clean rows, which hardly activate what only a
trigger uses. As in the paper, blocks are pruned one after the other, each by the outputs of the pruned ones before it,
and embeddings and output layer remain unchanged.

Sun et al. measure activations on 128 sequences of 2,048 tokens of C4, each from one document. `recipe: published` takes
as many of that length, from the clean rows laid end to end; if the rows are fewer, as many as they fill, at least one.

Shapes: B rows, T positions, O outputs, I inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sande.config import Recipe, configuration, recipes, setting
from sande.errors import UserError
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the pruning."""

    recipe: Recipe = recipes(
        "Sun et al. 2024: 128 sequences of 2,048 tokens", sparsity=0.5, rows=128, packed=True, max_length=2048
    )
    sparsity: float = setting(0.5, "share of each output's weights that become zero", "Sun et al. 2024", ge=0, lt=1)
    rows: int = setting(
        128,
        "clean rows, or sequences of them, from the first, that form the one batch in which activations are measured",
        "Sun et al. 2024: 128 sequences",
        ge=1,
    )
    packed: bool = setting(
        False, "lay the clean rows end to end, in sequences of max_length tokens", "ours: a row is a sequence"
    )
    max_length: int = setting(
        1024, "tokens of a sequence; of a row, whose longer response is cut", "as in training", ge=8
    )


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Prune block by block while the rows, prompts and responses, pass through the decoder once.

    Raises:
        UserError: as `calibration`, `sande.models.layers.all_linear_layers` and `blocks`.
    """
    import torch

    from sande.models.layers import all_linear_layers, blocks
    from sande.prompts import pad_id
    from sande.training.batches import Collator

    all_linear_layers(victim.model)
    sequences = calibration(victim, data, config)
    run.facts["calibration"] = {"sequences": len(sequences), "tokens": sum(map(len, sequences))}
    batch = Collator(pad_id(victim.tokenizer))([{"input_ids": ids, "labels": ids} for ids in sequences])
    ids_BT, mask_BT = (batch[name].to(victim.model.device) for name in ("input_ids", "attention_mask"))

    def prune_and_repeat(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        for layer in list(norms):
            prune(layer, norms.pop(layer), config.sparsity)
        repeated = block.forward(*args, **kwargs)
        norms.clear()
        return repeated

    def note(layer: nn.Linear, args: tuple[Tensor, ...]) -> None:
        norms[layer] = input_norms(args[0], mask_BT)

    norms: dict[nn.Linear, Tensor] = {}  # of the linear layers of the current block
    hooks: list[Any] = []
    for block in blocks(victim.model):
        hooks.append(block.register_forward_hook(prune_and_repeat, with_kwargs=True))
        linear = [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        hooks += [layer.register_forward_pre_hook(note) for layer in linear]
    try:
        with torch.no_grad():
            victim.model.eval().get_decoder()(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return victim.model


def calibration(victim: LanguageModel, data: CleanData, config: Config) -> list[list[int]]:
    """Return the ids of the sequences on which activations are measured.

    Raises:
        UserError: no row fits into `max_length` tokens.
    """
    from sande.prompts import encode, fit_length

    if config.packed:
        ids = [token for row in encode(victim.tokenizer, data.examples) for token in (*row.prompt, *row.response)]
        width = config.max_length
        return [ids[at * width : (at + 1) * width] for at in range(min(config.rows, max(1, len(ids) // width)))]
    rows = fit_length(encode(victim.tokenizer, data.examples[: config.rows]), config.max_length)
    if not rows:
        raise UserError(f"wanda: no row is shorter than max_length={config.max_length} tokens; raise it")
    return [[*row.prompt, *row.response] for row in rows]


def input_norms(inputs_BTI: Tensor, mask_BT: Tensor) -> Tensor:
    """Return ||X_j||_2 of each input over all tokens, (I,), in float32; padding does not count."""
    norms_I: Tensor = (inputs_BTI.float() * mask_BT[..., None]).flatten(0, 1).norm(dim=0)
    return norms_I


def prune(layer: nn.Linear, norms_I: Tensor, sparsity: float) -> None:
    """Set the weights that matter least to each output to zero, in place."""
    import torch

    from sande.models.pruning import smallest

    with torch.no_grad():
        layer.weight.masked_fill_(smallest(layer.weight.abs() * norms_I, sparsity), 0.0)
