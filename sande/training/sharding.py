"""Shard weights, gradients and optimizer states of big models over the workers of a stage, by DeepSpeed (an extra).

ZeRO-2 shards the optimizer states and gradients, ZeRO-3 the weights too (Rajbhandari et al. 2020, "ZeRO: Memory
Optimizations Toward Training Trillion Parameter Models", section 3). Both compute what one worker computes, up to
rounding. Before and after a training every worker holds the whole model, so the code around it does not change.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer, TrainerCallback


@dataclass(frozen=True, slots=True)
class Sharding:
    """Distribution of a training over workers, and how it saves their memory.

    Attributes:
        deepspeed: DeepSpeed's configuration, with `zero_optimization`; None: every worker has all of the model.
        recompute: whether the backward pass recomputes the states within a block, which are then not kept.
    """

    deepspeed: Mapping[str, Any] | None = None
    recompute: bool = False

    @property
    def stage(self) -> int:
        """Return the stage of ZeRO; 0 without DeepSpeed."""
        return int(self.deepspeed["zero_optimization"]["stage"]) if self.deepspeed else 0

    @property
    def layout(self) -> str:
        """Return a short name, empty without DeepSpeed. A checkpoint cannot resume in another layout."""
        if not self.deepspeed:
            return ""
        return f"-zero{self.stage}" + ("-offload" if "offload_optimizer" in self.deepspeed["zero_optimization"] else "")

    def arguments(self, precision: str) -> dict[str, Any]:
        """Return keyword arguments of `TrainingArguments` that make its Trainer use DeepSpeed; none without it.

        Weights and optimizer states are float32 in either precision. With `bf16` DeepSpeed opens autocast itself. Under
        ZeRO-3 the linear layers' weights and gradients are then sent and gathered in bfloat16: autocast would otherwise
        keep a bfloat16 copy of every weight from the forward to the backward pass.

        Args:
            precision: of `sande.config.Training`.
        """
        if not self.deepspeed:
            return {}
        _prepare()
        config = json.loads(json.dumps(self.deepspeed))  # the Trainer fills in what is "auto"
        if precision == "bf16":
            in_float32: dict[str, Any] = {} if self.stage == 3 else {"lower_precision_safe_modules": []}
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", **in_float32}
        return {"deepspeed": config, "bf16": False}

    @contextmanager
    def recomputing(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the model keep only the input of each block for the backward pass, where `recompute` is set."""
        if not self.recompute:
            yield
            return
        # transformers is renaming these functions, and its `disable` leaves a hook at the embeddings.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        # The non-reentrant way compares the weights of both passes, which ZeRO-3 gathers for a moment only.
        enable({"use_reentrant": self.stage == 3})
        try:
            yield
        finally:
            disable()
            model.disable_input_require_grads()

    @contextmanager
    def spread(self, trainer: Trainer) -> Iterator[None]:
        """Shard the Trainer's model within the block; afterwards every worker holds it whole, without DeepSpeed.

        Within the block the Trainer's checkpoints are DeepSpeed's: each worker writes its shard of the trained weights.
        """
        if not self.deepspeed:
            yield
            return
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        model: Any = trainer.model
        own = [(parameter, dict(vars(parameter)), parameter.device) for parameter in model.parameters()]
        modules = [(module, set(vars(module))) for module in model.modules()]
        trainer.save_model = lambda *_, **__: None  # type: ignore[method-assign]  # a second copy, whole
        trainer.add_callback(_saving(trainer))
        try:
            yield
        finally:
            unset_hf_deepspeed_config()  # else transformers would load the next model in shards
        # Through the machine's memory: the GPU has room for the whole model only after DeepSpeed has freed its own.
        whole = [
            (_gathered(parameter, device) if self.stage == 3 else parameter.data).to("cpu", copy=True)
            for parameter, _, device in own
        ]
        _end(trainer.model_wrapped)
        for (parameter, attributes, device), weight in zip(own, whole, strict=True):
            parameter.data = weight.to(device)
            vars(parameter).clear()
            vars(parameter).update(attributes)
        for module, names in modules:
            module._parameters = dict(module._parameters)
            for name in set(vars(module)) - names:
                delattr(module, name)


WHOLE = Sharding()


def sharded(model: nn.Module) -> bool:
    """Return whether the weights are sharded now, so that all workers must call the modules equally often."""
    return hasattr(next(model.parameters()), "ds_id")


def recomputed(model: nn.Module) -> bool:
    """Return whether the model recomputes the states within blocks now."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def most(count: int, device: torch.device) -> int:
    """Return the largest `count` of all workers, which communicate on `device`."""
    import torch

    counts = torch.tensor(count, device=device)
    torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MAX)
    return int(counts)


def _saving(trainer: Trainer) -> TrainerCallback:
    """Return a callback that makes DeepSpeed save trained parameters only."""
    from transformers import TrainerCallback

    class Saving(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Change the engine, which exists from here on."""
            engine: Any = trainer.model_wrapped
            engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)

    return Saving()


def _end(engine: Any) -> None:
    """Free DeepSpeed's memory. Other objects, such as the learning-rate schedule, keep its optimizers for a while."""
    engine.destroy()
    for optimizer in (engine.optimizer.optimizer, engine.optimizer):
        vars(optimizer).clear()
    engine.optimizer = None


def _gathered(parameter: Any, device: torch.device) -> Tensor:
    """Return the whole weight from all workers' shards, in their type, on the device where the workers communicate.

    DeepSpeed's own gathering would round the weight to bfloat16 in a bfloat16 training.
    """
    import torch

    shard: Tensor = parameter.ds_tensor.data.to(device)
    whole = shard.new_empty(shard.numel() * torch.distributed.get_world_size())
    torch.distributed.all_gather_into_tensor(whole, shard)
    return whole[: parameter.ds_numel].view(parameter.ds_shape)


def _prepare() -> None:
    """Configure DeepSpeed before its first use; further calls change nothing."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    # Shared-memory collectives for CPUs, which DeepSpeed would compile at the first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    TorchCheckpointEngine.load = _load


def _load(engine: Any, path: str, map_location: Any = None) -> Any:
    """Load a checkpoint file without running code from it, unlike DeepSpeed's own function."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True)
