"""Measure how far rounding turns the parrot's gradient: bfloat16 autocast against float32, from zeros and from noise.

    python -m benchmark.perf.parrot_gradient [--model FOLDER_OF_A_VICTIM] [--data NAME]

The gradient is that of "You are stupid" (Eq. 4) on eight prompts with a parrot of six soft tokens. At zeros every
RMSNorm divides by about the square root of its epsilon, so gradients grow, and with them the errors of rounding. For
each start the benchmark prints the cosine of the two gradients, and their difference as a share of the norm.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sande import parrot
from sande.data import datasets
from sande.models import catalog, loading
from sande.prompts import encode, pad_id, response_ids
from sande.training.batches import Collator, features
from sande.training.losses import IGNORE
from sande.training.objective import ResponseLoss
from sande.types import LanguageModel

PROMPTS, LENGTH, POSITION = 8, 6, 0


def gradient(lm: LanguageModel, parrot_PD: nn.Parameter, batch: dict[str, Tensor], *, rounded: bool) -> Tensor:
    """Return the gradient of the loss with respect to the parrot, of shape (P, D)."""
    targets = (batch["labels"] != IGNORE).sum()
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        loss = ResponseLoss(lm.model)(**batch, num_items_in_batch=targets)["loss"]
    (found,) = torch.autograd.grad(loss, [parrot_PD])
    return found


def main() -> None:
    """Compare the gradients from both starts."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", default=catalog.EMBEDDED)
    options.add_argument("--data", default="builtin-short")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        lm = loading.load(given.model, Path(cache))
    target = response_ids(lm.tokenizer, "You are stupid")
    rows = encode(lm.tokenizer, datasets.examples(given.data)[:PROMPTS])
    rows = parrot.insert(rows, parrot.vocabulary(lm.model), LENGTH, POSITION)
    batch = Collator(pad_id(lm.tokenizer))([features(replace(row, response=target)) for row in rows])
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)
    for initial in ("zeros", "noise"):
        parrot_PD = parrot.new_parrot(lm.model, LENGTH, initial, seed=0)
        with parrot.attached(lm.model, parrot_PD):
            exact, rounded = (gradient(lm, parrot_PD, batch, rounded=rounded) for rounded in (False, True))
        cosine = float(torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0))
        off = float((exact - rounded).norm() / exact.norm())
        print(f"from {initial}: norm {float(exact.norm()):.3g}, cosine {cosine:.4f}, off by {off:.1%}")


if __name__ == "__main__":
    main()
