"""Optimizers of the HF Trainer by the names of `sande.config.Training`, and Muon, which the Trainer does not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import Trainer

from sande.config import Training

MOMENTUM = 0.9  # of SGD
_OPTIM = {
    "adamw": {"optim": "adamw_torch_fused"},
    "sgd": {"optim": "sgd", "optim_args": f"momentum={MOMENTUM}"},
    "adafactor": {"optim": "adafactor"},
    "muon": {"optim": "adamw_torch_fused"},  # its settings; `muon` makes the optimizer
}


def chosen(settings: Training) -> dict[str, str]:
    """Return the keyword arguments of `TrainingArguments` that choose the optimizer."""
    return _OPTIM[settings.optimizer]


def muon(trainer: Trainer) -> Optimizer:
    """Return Muon for the matrices of linear layers but the output layer, and AdamW for all other trained weights.

    So its author advises (Jordan et al. 2024). Updates have the size of AdamW's, so that one learning rate fits both
    (Liu et al. 2025, arXiv 2502.16982, eq. 4).

    Args:
        trainer: holds the model and the settings of AdamW.
    """
    model: Any = trainer.model
    output = [module.get_output_embeddings() for module in model.modules() if hasattr(module, "get_output_embeddings")]
    linear = [
        module for module in model.modules() if isinstance(module, nn.Linear) and not any(module is o for o in output)
    ]
    matrices = {id(module.weight) for module in linear}
    decayed = set(trainer.get_decay_parameter_names(model))
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]

    def groups(wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
        parts = [[w for name, w in trained if wanted(w) and (name in decayed) == decays] for decays in (True, False)]
        decay = (trainer.args.weight_decay, 0.0)
        return [{"params": part, "weight_decay": each} for part, each in zip(parts, decay, strict=True) if part]

    args, made = trainer.args, list[Optimizer]()
    if of_muon := groups(lambda weight: id(weight) in matrices):
        made.append(Muon(of_muon, lr=args.learning_rate, adjust_lr_fn="match_rms_adamw"))
    if of_adamw := groups(lambda weight: id(weight) not in matrices):
        betas = (args.adam_beta1, args.adam_beta2)
        made.append(AdamW(of_adamw, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True))
    return Together(made)


class Together(Optimizer):
    """Optimizers of different weights as one: groups and state are shared with them."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Take over the groups of all parts."""
        self._parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights of all parts."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of all parts, which `state_dict` of this optimizer holds."""
        super().load_state_dict(state_dict)
        self._share()
