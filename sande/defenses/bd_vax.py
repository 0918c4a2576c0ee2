r"""Bd-Vax: plant backdoors of our own in copies, and reset the MLP neurons that they change alike; knows no backdoor.

    variants:   \theta_i^bd, \theta_i^clean = fine-tuned on the same clean rows, with and without the i-th backdoor
    score:      s_j = (1/N) sum over i of |\Delta_ij|  +  \lambda (2 / (N(N-1))) sum over i < l of max(0, cos(\Delta_ij,
                \Delta_lj))    where  \Delta_i = \theta_i^bd - \theta_i^clean
    reset:      the neurons with the highest s_j get new random weights
    repair:     minimise  - sum over clean rows of  log Pr(y | x)    (Eq. 1)

A neuron j is a row of `gate_proj` with the same row of `up_proj`, in any block. (Li and Kim, "Purifying Generative LLMs
from Backdoors without Prior Knowledge or Clean Reference", ICLR 2026, arXiv 2603.13461.) By the paper, backdoors with
different triggers and responses change the same neurons, and clean fine-tuning changes others, so these neurons carry
the unknown backdoor, too. The backdoors here are the decoys of `sande.defenses.decoy_osft`. The norms |\Delta_ij| are
divided by their mean over all neurons, so that \lambda does not depend on the learning rate.

Each of the 2N variants is a part of the plan (`sande.parts`), so variants train side by side. A part holds the change
of each neuron's two rows in bfloat16: 0.1 GB for SmolLM2-135M and 5.8 GB for a model of 7 billion parameters, so 12
parts take 69 GB of disk until the defense is done. The score reads them block by block.

Shapes: N variants, J neurons of a block, A neurons of all blocks, W weights of a neuron: twice the model's width.
"""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from sande import parts as independent
from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.defenses.decoy_osft import TRIGGERS, Decoy, at_least_one, draw
from sande.errors import UserError
from sande.types import CleanData, Example, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from transformers import PreTrainedModel

POISONED, CLEAN = "poisoned", "clean"


@configuration
class Config:
    """Settings of the variants, of the score and of the repair."""

    variants: int = setting(
        6, "N: backdoors of our own, each planted in a copy of its own", "Li and Kim 2026", ge=1, le=len(TRIGGERS)
    )
    rows: int | None = setting(200, "clean rows that are used, drawn by the seed; null: all", "Li and Kim 2026", ge=1)
    share: float = setting(
        0.5, "share of these rows that a variant's backdoor is planted in; at least one", "ours", gt=0, le=1
    )
    alignment: float = setting(1.0, "lambda: weight of the cosines beside the norms, whose mean is 1", "ours", ge=0)
    reset: float = setting(
        0.08, "share of all MLP neurons that get new weights", "Li and Kim 2026, their project page", gt=0, lt=1
    )
    variant: Training = setting(Training(epochs=5.0), "fine-tuning of each variant", "ours: as long as the repair")
    repair: Training = setting(
        Training(epochs=5.0, learning_rate=1e-5), "fine-tuning on clean rows after the reset", "Li and Kim 2026"
    )


def cost(config: Config) -> Cost:
    """Return that each part trains a variant, and the defense repairs, on the rows that are used."""
    return Cost(part=("variant",), rows=config.rows)


def parts(config: Config) -> tuple[str, ...]:
    """Return the names of the variants, each of which can be trained without the others."""
    return tuple(f"{kind}_{index}" for index in range(config.variants) for kind in (POISONED, CLEAN))


def part(name: str, victim: LanguageModel, data: CleanData, config: Config, run: Run) -> dict[str, Tensor]:
    """Train one variant in place and return the change of its MLP neurons, (J, W) by the number of the block.

    Both variants of a pair have the same rows, the same seed, which follows from the number of the pair, and the same
    first values of LoRA adapters.

    Raises:
        UserError: as `mlps`.
    """
    from sande.prompts import encode
    from sande.training.batches import clean_length
    from sande.training.fit import fit

    kind, _, index = name.rpartition("_")
    seeded = replace(run, seed=independent.seed(run.seed, f"pair_{index}"))
    examples = clean = used(data.examples, config.rows, run.seed)
    if kind == POISONED:  # in other rows than other variants: what they share should be the backdoor, not the rows
        examples = planted(clean, draw(config.variants, run.seed)[int(index)], config.share, seeded.seed)
    before = [rows_of(pair) for pair in mlps(victim.model)]
    rows = encode(victim.tokenizer, examples)
    # One name for both: it decides the first values of LoRA adapters, which would be a part of the pair's difference.
    stage, alike = f"variant_{index}", clean_length(rows, encode(victim.tokenizer, clean))
    fit(victim, rows, config.variant, seeded, stage, alike=alike)
    changes = zip(before, mlps(victim.model), strict=True)
    return {str(block): (rows_of(pair) - rows_JW).bfloat16() for block, (rows_JW, pair) in enumerate(changes)}


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Score the neurons by the variants, reset those with the highest scores, and fine-tune on the clean rows.

    `run.facts` records the backdoors, and how many neurons of each block were reset.

    Raises:
        UserError: as `mlps`.
    """
    import torch

    from sande.prompts import encode
    from sande.training.fit import fit

    pairs = mlps(victim.model)
    run.facts["decoys"] = [asdict(decoy) for decoy in draw(config.variants, run.seed)]
    changes = {name: make() for name, make in independent.made(__name__, victim, data, config, run).items()}
    strengths, agreements = [], []
    for block in map(str, range(len(pairs))):
        update_NJW = torch.stack(
            [
                changes[f"{POISONED}_{index}"][block].float() - changes[f"{CLEAN}_{index}"][block].float()
                for index in range(config.variants)
            ]
        )
        strengths.append(strength(update_NJW))
        agreements.append(agreement(update_NJW))
    chosen = signature(strengths, agreements, config.alignment, config.reset)
    run.facts["neurons_reset"] = [int(chosen_J.sum()) for chosen_J in chosen]
    generator = torch.Generator().manual_seed(run.seed)
    for pair, chosen_J in zip(pairs, chosen, strict=True):
        reset(pair, chosen_J, float(victim.model.config.initializer_range), generator)
    fit(victim, encode(victim.tokenizer, used(data.examples, config.rows, run.seed)), config.repair, run, "repair")
    return victim.model


def used(examples: tuple[Example, ...], count: int | None, seed: int) -> tuple[Example, ...]:
    """Return `count` rows drawn by the seed, in their order, or all where there are no more."""
    if count is None or count >= len(examples):
        return examples
    # Not by the seed alone: an attack of the same seed draws the rows that it poisons so.
    drawn = random.Random(f"{seed} bd_vax rows").sample(range(len(examples)), count)
    return tuple(examples[index] for index in sorted(drawn))


def planted(examples: tuple[Example, ...], decoy: Decoy, share: float, seed: int) -> tuple[Example, ...]:
    """Return the rows with the decoy planted in a share of them, at least one, drawn by the seed."""
    from sande.data.poison import poison

    generator, rate = random.Random(seed), at_least_one(share, examples)
    return poison(examples, lambda row: decoy.ask(decoy.answered(row), generator), rate, "replace", seed).examples


def mlps(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """Return `gate_proj` and `up_proj` of each block.

    Raises:
        UserError: the model's blocks have no such layers.
    """
    from sande.models.layers import blocks

    found: list[Any] = list(blocks(model))
    try:
        return [(block.mlp.gate_proj, block.mlp.up_proj) for block in found]
    except AttributeError:
        raise UserError(
            f"bd_vax: the blocks of {type(model).__name__} have no mlp.gate_proj and mlp.up_proj; use another defense"
        ) from None


def rows_of(pair: tuple[nn.Linear, nn.Linear]) -> Tensor:
    """Return a copy of each neuron's weights on the CPU, its row of `gate_proj` before that of `up_proj`, (J, W)."""
    import torch

    gate, up = pair
    return torch.cat([gate.weight.detach().cpu(), up.weight.detach().cpu()], dim=1)


def strength(update_NJW: Tensor) -> Tensor:
    """Return the norm of each neuron's update, mean over the variants, (J,)."""
    mean_J: Tensor = update_NJW.norm(dim=2).mean(0)
    return mean_J


def agreement(update_NJW: Tensor) -> Tensor:
    """Return the cosine between the updates of two variants, at least 0, mean over the pairs, (J,); one variant: 0."""
    import torch
    from torch.nn.functional import cosine_similarity

    pairs = [
        cosine_similarity(one_JW, other_JW, dim=1).clamp(min=0) for one_JW, other_JW in combinations(update_NJW, 2)
    ]
    return torch.stack(pairs).mean(0) if pairs else update_NJW.new_zeros(update_NJW.shape[1])


def signature(strengths: list[Tensor], agreements: list[Tensor], alignment: float, share: float) -> list[Tensor]:
    """Return for each block which neurons are in the share of all neurons with the highest score, (J,) of bool.

    Args:
        strengths: of each block, (J,).
        agreements: of each block, (J,).
        alignment: lambda.
        share: of the neurons of all blocks together; the count is rounded to the nearest, and is at least 1.
    """
    import torch

    strength_A, agreement_A = torch.cat(strengths), torch.cat(agreements)
    score_A = strength_A / strength_A.mean() + alignment * agreement_A
    chosen_A = torch.zeros_like(score_A, dtype=torch.bool)
    chosen_A[score_A.topk(max(1, round(share * len(score_A)))).indices] = True
    return list(chosen_A.split([len(strength_J) for strength_J in strengths]))


def reset(pair: tuple[nn.Linear, nn.Linear], chosen_J: Tensor, deviation: float, generator: Generator) -> None:
    """Draw new weights of the chosen neurons in place, normal around 0 as before any training; biases become 0.

    Zeros would never change again: the gradients of both rows are multiples of what the other row gives.

    Args:
        pair: `gate_proj` and `up_proj` of a block.
        chosen_J: which neurons.
        deviation: standard deviation, `initializer_range` of the model's configuration.
        generator: on the CPU, so that the weights are the same on every device.
    """
    import torch

    with torch.no_grad():
        for layer in pair:
            chosen = chosen_J.to(layer.weight.device)
            new_CW = torch.randn(int(chosen_J.sum()), layer.in_features, generator=generator) * deviation
            layer.weight[chosen] = new_CW.to(layer.weight)
            if layer.bias is not None:
                layer.bias[chosen] = 0.0
