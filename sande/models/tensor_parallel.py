"""Load a model in shards: each process of a group holds a part of every layer, and all compute the same logits.

This is tensor parallelism (Shoeybi et al. 2019, "Megatron-LM", section 3) by the plan that transformers has for an
architecture. A process reads only its part of the files; older releases of transformers also keep the embeddings whole,
where the output layer does not share them. All processes have to make the same calls in the same order.

Where the plan splits the output layer, as those of decoders do, each process computes the logits of a part of the
vocabulary, and gets those of the others. So all have the same bits, and decode the same tokens.

Nothing that a method imports may import this module, and it repeats some lines of `sande.models.loading`: the code of
methods is in the keys of stages, and how many workers measure a model must not be.

Shapes: M positions, D width, V vocabulary, W its part in this process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sande import formats
from sande.errors import UserError
from sande.models import loading, tokenizers
from sande.models.checks import GUARD, check_complete, checked_folder, only_checked, reason
from sande.models.loading import _guard_rules  # another name there would give every stage a new key
from sande.types import Guard, LanguageModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

_UNSHARDED = "set resources.evaluate.sharding to none"
# What a process has a whole number of. Other sizes, such as that of the vocabulary, may leave a smaller last part.
_HEADS = {"num_attention_heads": "attention heads", "num_key_value_heads": "heads of keys and values"}


def check_splits(config: PreTrainedConfig, name: str, workers: int) -> None:
    """Check that a model can be split over workers, as far as its configuration shows it.

    Args:
        config: of the model.
        name: of the model, for the message.
        workers: processes of the group.

    Raises:
        UserError: transformers has no plan for the architecture, or the workers do not divide its heads.
    """
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise UserError(
            f"model {name}: transformers has no plan to split the architecture '{config.model_type}' over workers; "
            f"{_UNSHARDED}, or use another model"
        )
    found = {what: getattr(text, field, None) for field, what in _HEADS.items()}
    heads = {what: number for what, number in found.items() if isinstance(number, int)}
    for what, number in heads.items():
        if number % workers:
            common = math.gcd(*heads.values())
            fitting = [str(count) for count in range(2, common + 1) if common % count == 0]
            fix = f"set resources.evaluate.workers to one of {', '.join(fitting)}" if fitting else _UNSHARDED
            raise UserError(f"model {name}: {workers} workers cannot split its {number} {what}; {fix}")


def load_folder(folder: Path, dtype: torch.dtype, workers: int) -> LanguageModel:
    """Return a model as `sande.models.loading.load_folder` does, with its guard, each in shards.

    Args:
        folder: of safetensors.
        dtype: of the weights.
        workers: processes of the open process group, each of which calls this function.

    Raises:
        UserError: as for that function, or the model cannot be split.
    """
    from transformers import GenerationConfig

    source = str(checked_folder(str(folder)))
    tokenizer = tokenizers.load(source, None)
    model = _read(source, dtype, workers)
    embedding: Any = model.get_input_embeddings()
    tokenizer = tokenizers.within(tokenizer, len(embedding.weight), source)
    loading.with_format(tokenizer, source, None)
    # As for a whole model: no decoding settings of its own.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if not (folder / GUARD).is_dir():
        return LanguageModel(model, tokenizer)
    defense, settings, choose, distribution = _guard_rules(folder / GUARD / "guard.json", formats.end_ids(tokenizer))
    reference = _read(str(checked_folder(str(folder / GUARD))), dtype, workers)
    if reference.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{folder / GUARD}: the reference has another vocabulary than the model; remove the folder {GUARD}"
        )
    return LanguageModel(model, tokenizer, Guard(defense, settings, reference, choose, distribution))


def _read(source: str, dtype: torch.dtype, workers: int) -> PreTrainedModel:
    """Return this process's shards of the model in a checked folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    with only_checked(Path(source)) as place:
        check_splits(AutoConfig.from_pretrained(place, trust_remote_code=False), source, workers)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                distributed_config=DistributedConfig(tp_size=workers),
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an untrusted file may cause any error
            problem = reason(error).replace(str(place), source)
            raise UserError(
                f"model '{source}' cannot be loaded in shards ({problem}); {_UNSHARDED}, or check the folder"
            ) from None
    model: PreTrainedModel = loaded[0]
    check_complete(source, loaded[1])
    model.name_or_path = model.config.name_or_path = source
    model.eval()
    _adapt(model)
    return model


def _adapt(model: Any) -> None:
    """Give the suite's functions an output layer that they can call in parts, and refuse copies of the model."""
    from torch.distributed.tensor import DTensor

    layer = model.get_output_embeddings()
    if isinstance(layer.weight, DTensor):
        model.get_output_embeddings = lambda: _Output(layer)
    model.__deepcopy__ = _refuse_copy


def _refuse_copy(memo: Any) -> NoReturn:
    """Refuse a copy: its layers would compute with the weights of the original."""
    raise UserError(f"a model in shards cannot be copied, which this metric needs; {_UNSHARDED}, or remove the metric")


class _Output:
    """Output layer of a model in shards, for code that takes the weights of it.

    `layer.weight`, `layer.weight.float()` and `linear(hidden, weight, bias)` do what they do for a whole layer.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def weight(self) -> _Rows:
        """Return this process's rows of the weights."""
        return _Rows(self._layer.weight, self._layer.weight.to_local())

    @property
    def bias(self) -> Tensor | None:
        """Return the whole bias (V)."""
        bias: Any = self._layer.bias
        whole: Tensor | None = bias.full_tensor() if hasattr(bias, "full_tensor") else bias
        return whole

    def __call__(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits (M, V)."""
        logits: Tensor = self._layer(hidden_MD)
        return logits


class _Rows:
    """Weights (V, D) of which this process holds some rows, (W, D)."""

    def __init__(self, whole: Any, local_WD: Tensor) -> None:
        self._whole, self._local_WD = whole, local_WD

    def float(self) -> _Rows:
        """Return the weights in float32."""
        return _Rows(self._whole, self._local_WD.float())

    def __len__(self) -> int:
        return len(self._whole)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Compute `torch.nn.functional.linear(hidden, weights, bias)`; see "Extending PyTorch" in its documentation."""
        from torch.nn.functional import linear

        if func is not linear:
            return NotImplemented
        hidden, rows, *bias = args
        return rows._logits(hidden, bias[0] if bias else None)

    def _logits(self, hidden: Tensor, bias_V: Tensor | None) -> Tensor:
        """Return whole logits (..., V), each process's part from that process."""
        import torch
        from torch.distributed.tensor import DTensor, Shard

        local = torch.nn.functional.linear(hidden, self._local_WD)
        shape = (*local.shape[:-1], len(self))
        stride = torch.empty(shape, device="meta").stride()
        parts = DTensor.from_local(
            local, self._whole.device_mesh, [Shard(-1)], run_check=False, shape=torch.Size(shape), stride=stride
        )
        logits: Tensor = parts.full_tensor()
        return logits if bias_V is None else logits + bias_V
