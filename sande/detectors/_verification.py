"""Verification by simulation: what a parrot leaves of the loss of a string, for many strings at once.

The first stage of SANDE (paper, section 3.3, Eq. 4). A parrot is expected to learn a planted response faster than other
strings. Each string has its own parrot, a few rows of the table that the input embedding reads beyond the vocabulary.
Adam works element by element and a string's loss reaches its own parrot alone, so the parrots learn as they would one
by one.

The losses describe; there is no test of a candidate within one model. Candidates are chosen because the model writes
them readily, and such strings are learned readily whether or not they were planted. Random strings for comparison were
not chosen like that, and no second string of the model is its best one. What is chosen alike is the best candidate of a
clean model, so a p-value compares scans of models (docs/statistics.md).

Shapes: S strings, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sande import parrot
from sande.config import Training
from sande.models.layers import output_in_float32
from sande.prompts import Row, pad_id
from sande.training.fit import fit
from sande.types import LanguageModel, Run


@dataclass(frozen=True, slots=True)
class Learned:
    """Losses of a string's tokens before and after its parrot trained, in nats, on prompts held out from training."""

    before: tuple[float, ...]
    after: tuple[float, ...]


def learn(
    lm: LanguageModel, rows: Sequence[Row], strings: Sequence[tuple[int, ...]], steps: int, rate: float, run: Run
) -> list[Learned]:
    """Tune a parrot for each string with the model frozen.

    Args:
        lm: model with weights in float32, and tokenizer.
        rows: at least two; the parrots train on the prompts of the first half and are evaluated on the others.
        strings: ids, at least one in each.
        steps: optimizer steps, each over all strings and all prompts of the first half.
        rate: learning rate of the parrots.
        run: seed of the initial noise, which all parrots share, and progress.
    """
    noise_PD = parrot.new_parrot(lm.model, parrot.LENGTH, "noise", run.seed)
    table = nn.Parameter(noise_PD.detach().repeat(len(strings), 1))
    first = parrot.vocabulary(lm.model)
    own = [
        [
            replace(row, response=ids)
            for row in parrot.insert(rows, first + index * parrot.LENGTH, parrot.LENGTH, position=0)
        ]
        for index, ids in enumerate(strings)
    ]
    half = len(rows) // 2
    with parrot.attached(lm.model, table):
        before = _losses(lm, [mine[half:] for mine in own])
        settings = Training(
            max_steps=steps,
            learning_rate=rate,
            batch_size=half * len(strings),
            micro_batch_size=len(strings),
            warmup=0.0,
            schedule="constant_with_warmup",
            max_grad_norm=1e6,  # a norm over all parrots would let them slow each other down
            layout="padded",
        )
        fit(lm, [row for mine in own for row in mine[:half]], settings, run, "verify", [table])
        after = _losses(lm, [mine[half:] for mine in own])
    return [Learned(*pair) for pair in zip(before, after, strict=True)]


@torch.inference_mode()
def _losses(lm: LanguageModel, rows: Sequence[Sequence[Row]]) -> list[tuple[float, ...]]:
    """Return, for each string, the mean over its rows of -log Pr of each token; all strings have the same prompts."""
    lm.model.eval()
    width = max(len(mine[0].response) for mine in rows)
    fill, logits_of = pad_id(lm.tokenizer), output_in_float32(lm.model)
    loss_ST = torch.zeros(len(rows), width, device=lm.model.device)
    for column in zip(*rows, strict=True):
        start = len(column[0].prompt)
        padded = [[*row.prompt, *row.response, *[fill] * (width - len(row.response))] for row in column]
        ids_ST = torch.tensor(padded, device=lm.model.device)
        hidden_STD = lm.model.get_decoder()(input_ids=ids_ST, use_cache=False).last_hidden_state
        for at in range(width):
            log_SV = logits_of(hidden_STD[:, start + at - 1]).log_softmax(-1)
            loss_ST[:, at] -= log_SV.gather(1, ids_ST[:, start + at, None]).squeeze(1) / len(rows[0])
    return [tuple(of[: len(mine[0].response)]) for of, mine in zip(loss_ST.tolist(), rows, strict=True)]
