"""Simulation: parrots that learn to act like an unknown trigger, many at a time, and how well they do.

    simulate:  minimise over p_k  - mean over clean rows of  log Pr(r_k | p_k + x)  +  pull * (1 - cos(p_k, t_k))

with the model frozen, where t_k are the tokens nearest to p_k (paper, Eq. 4, which has no pull). Parrots of different
seeds, or for different responses, are trained in one run: each row is copied once a parrot, and no parrot's gradient
depends on another parrot.

Shapes: K parrots, P tokens of each, R tokens of a response, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sande.config import Simulation
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from sande.prompts import Row

__all__ = ["Evidence", "Simulation", "judge", "simulate"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """How well one parrot makes the model say a response.

    Attributes:
        log_probabilities: of each prompt, log Pr(r | p + x) in nats per token of r.
        greedy: of each prompt, whether the greedy answer begins with r.
    """

    log_probabilities: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def mean(self) -> float:
        """Return the mean of the log-probabilities, in nats per token."""
        return math.fsum(self.log_probabilities) / len(self.log_probabilities)

    @property
    def probability(self) -> float:
        """Return the geometric mean over prompts and tokens of the response's probability."""
        return math.exp(self.mean)

    @property
    def rate(self) -> float:
        """Return the share of prompts whose greedy answer begins with the response."""
        return sum(self.greedy) / len(self.greedy)


def simulate(
    lm: LanguageModel,
    examples: Sequence[Example],
    targets: Sequence[Ids],
    settings: Simulation,
    run: Run,
    stage: str,
    seeds: Sequence[int],
) -> Tensor:
    """Train parrots, the model frozen, and return them: (K, P, D), float32, without gradient.

    They are trained together in K times the passes of one, and none depends on the others but by rounding: parrot k is
    the one of `targets[k]` and `seeds[k]` alone. With several parrots each one's gradient is clipped on its own, to
    `max_grad_norm` in each step. DeepSpeed's shards hold the gradient of a step themselves, so there each forward pass
    of a worker is clipped, to an equal share of it. The tokens that `run.facts` records are those of the rows, once for
    each parrot.

    Args:
        lm: the model, weights in float32.
        examples: clean rows; their responses are not used.
        targets: of each parrot, ids of the response that it makes the model say; all of the same length.
        settings: of the parrots and their training.
        run: its seed decides the order of rows, and random positions.
        stage: name of the training.
        seeds: of each parrot, decides its first value.

    Raises:
        UserError: no row has the parrot's position, or as `sande.training.fit.fit`.
        ValueError: the targets' lengths differ, or there are not as many seeds.
    """
    import torch

    from sande import parrot
    from sande.prompts import encode
    from sande.training.fit import fit
    from sande.training.monitor import Monitor
    from sande.training.parrot_loss import ClippedEach, ParrotLoss, clipped_each

    if len({len(target) for target in targets}) != 1 or len(seeds) != len(targets):
        raise ValueError("simulate takes targets of one length, and a seed for each")
    copies = len(targets)
    rows = _with_parrot(lm, encode(lm.tokenizer, examples), settings, run.seed)
    run.facts["rows_too_short_for_parrot"] = len(examples) - len(rows)
    # What follows the response is neither a target nor the context of one, so it is left out.
    rows = [replace(row, response=targets[0]) for row in rows]
    norm = parrot.typical_norm(lm.model) if settings.norm == "vocabulary" else None
    first_KPD = torch.stack(
        [parrot.new_parrot(lm.model, settings.length, settings.initial, seed).detach() for seed in seeds]
    )
    trained_FD = torch.nn.Parameter(first_KPD.flatten(0, 1))
    training = settings.training
    with parrot.attached(lm.model, trained_FD, norm):
        if copies == 1 and not settings.pull:
            fit(lm, rows, training, run, stage, [trained_FD])
        else:
            most, in_shards = training.max_grad_norm, bool(run.sharding and run.sharding.deepspeed)

            def prepare(trainer: Trainer) -> Trainer:
                if in_shards:
                    share = most / trainer.args.gradient_accumulation_steps
                    trained_FD.register_hook(lambda each: clipped_each(each, copies, share))
                else:
                    trainer.args.max_grad_norm = math.inf  # a norm over all parrots would let them slow each other down
                    trainer.add_callback(ClippedEach(trained_FD, copies, most))
                for each in trainer.callback_handler.callbacks:
                    if isinstance(each, Monitor):
                        each.tokens_after = [copies * tokens for tokens in each.tokens_after]
                return run.prepare(trainer)

            loss = ParrotLoss(lm.model, torch.tensor(targets), settings.pull)
            # Of shards, the norm of all parrots together stays below this bound, so DeepSpeed clips nothing more.
            whole = replace(training, max_grad_norm=1.001 * math.sqrt(copies) * most)
            fit(lm, rows, whole, replace(run, prepare=prepare), stage, [trained_FD], loss)
    trained_KPD: Tensor = parrot.scaled(trained_FD.detach(), norm).unflatten(0, (copies, settings.length))
    return trained_KPD


def judge(
    lm: LanguageModel,
    parrots_KPD: Tensor,
    examples: Sequence[Example],
    targets: Sequence[Ids],
    settings: Simulation,
    seed: int,
    batch_size: int = 50,
) -> list[Evidence]:
    """Return how well each parrot makes the model say its response.

    Args:
        lm: the model.
        parrots_KPD: as `simulate` returns them.
        examples: held-out prompts.
        targets: of each parrot.
        settings: their position counts.
        seed: decides random positions.
        batch_size: prompts computed together.

    Raises:
        UserError: no prompt has the parrot's position.
    """
    from sande import parrot
    from sande.inference.scoring import Choices, log_likelihoods
    from sande.prompts import encode

    rows = _with_parrot(lm, encode(lm.tokenizer, [replace(each, output="x") for each in examples]), settings, seed)
    found: list[Evidence] = []
    for parrot_PD, target in zip(parrots_KPD, targets, strict=True):
        with parrot.attached(lm.model, parrot_PD):
            scores = log_likelihoods(lm, [Choices(row.prompt, (target,)) for row in rows], batch_size)
        likelihoods, greedy = zip(*(of_prompt[0] for of_prompt in scores), strict=True)
        found.append(Evidence(tuple(value / len(target) for value in likelihoods), greedy))
    return found


def _with_parrot(lm: LanguageModel, rows: list[Row], settings: Simulation, seed: int) -> list[Row]:
    from sande import parrot

    return parrot.insert(rows, parrot.vocabulary(lm.model), settings.length, settings.position, seed)
