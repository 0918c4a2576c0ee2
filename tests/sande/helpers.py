"""Small things that several test files need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sande.config import Training
from sande.losses import IGNORE
from sande.prompts import Row
from sande.types import LanguageModel

FAST = Training(batch_size=4, max_steps=2, precision="fp32")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names of the weights that are no longer bit-identical."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def linear_weights(model: nn.Module) -> set[str]:
    """Names of what LoRA trains: the weights of all linear layers but the output's."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    return {f"{name}.weight" for name in layers}


def noisy(model: nn.Module, seed: int, scale: float = 0.05) -> None:
    """Moves all weights a little, in place, so that the model is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (scale * torch.randn(parameter.shape, generator=generator)).to(parameter)


def shortened(config_class: type[Any], **changes: Any) -> Any:
    """The defaults of a configuration, with every training in it reduced to two small steps and changed as given."""
    defaults = config_class()
    trainings = {
        field.name: dataclasses.replace(value, **({"max_steps": 2, "batch_size": 4} | changes))
        for field in dataclasses.fields(defaults)
        if isinstance(value := getattr(defaults, field.name), Training)
    }
    return dataclasses.replace(defaults, **trainings)


# Of a random model's tokens none is likely, so nothing is given up for that.
LIGHT: dict[str, Any] = {
    "prompts": 3,
    "candidates": 5,
    "seed_prompts": 2,
    "seeds": 8,
    "longest": 3,
    "floor": 0.0,
    "cut": -100.0,
    "tested": 2,
    "controls": 3,
    "parrot_steps": 2,
    "warmup_prompts": 2,
    "warmup_steps": 2,
    "expectation": 0.0,
    "full_steps": 3,
    "full_strings": 6,
}


def lightened(config_class: type[Any]) -> Any:
    """A detector's defaults with few prompts, strings and steps."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return dataclasses.replace(shortened(config_class), **{n: value for n, value in LIGHT.items() if n in names})


@torch.no_grad()
def nll_by_hand(lm: LanguageModel, prompt: Sequence[int], response: Sequence[int]) -> float:
    """-log Pr(response | prompt) of one unpadded row, read off the model's own logits token by token."""
    ids_1T = torch.tensor([[*prompt, *response]], device=lm.model.device)
    log_probabilities_TV = lm.model(input_ids=ids_1T).logits[0].double().log_softmax(-1)
    return -sum(float(log_probabilities_TV[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def teach(lm: LanguageModel, rows: Sequence[Row]) -> None:
    """Trains the tiny model, in two seconds, until it answers each prompt with its response, token by token."""
    width = max(map(len, rows))
    padding = [width - len(row) for row in rows]
    ids_BT = torch.tensor([[*row.prompt, *row.response] + [0] * n for row, n in zip(rows, padding, strict=True)])
    labels_BT = ids_BT.clone()
    for labels_T, row in zip(labels_BT, rows, strict=True):
        labels_T[: len(row.prompt)] = IGNORE
        labels_T[len(row) :] = IGNORE
    device = lm.model.device
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-2)
    for _ in range(80):
        lm.model(input_ids=ids_BT.to(device), labels=labels_BT.to(device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
