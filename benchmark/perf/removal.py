"""Compare SANDE's two stages on a CPU with the published recipe, which computes more than they need.

    python -m benchmark.perf.removal

Both sides train SmolLM2-135M on random tokens in rows of Alpaca-like lengths, eight a step, with a parrot of six soft
tokens, autocast to bfloat16 where `sande.compute` chooses it. The published recipe runs whole rows, padded without
regard to length, computes all logits, and makes one more forward pass whose result it does not use (its activation
checkpointing and eager attention are left out here). Ours is `sande.training.objective.ResponseLoss` on rows that end
at their last target, in batches of similar length, with logits at targets. A step of simulate is forward, backward to
the parrot alone, and its update. A step of eliminate, on ten response tokens, updates all weights. Learning rates are
0, so that both sides keep the same gradients.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.perf import training_gpu
from benchmark.perf.outcome import tell
from sande import parrot
from sande.compute import compute_type
from sande.config import Training
from sande.models import catalog, loading
from sande.prompts import Row, pad_id, response_ids, shorten
from sande.training.batches import Collator, features, row_order
from sande.training.losses import response_nll
from sande.training.objective import ResponseLoss
from sande.types import LanguageModel

ROWS, BATCH = 16, 8
PARROT, RESPONSE = 6, 10  # soft tokens; first response tokens that eliminate trains
CHECKED, TOLERANCE = 4, 1e-3  # rows on which the gradients are compared, in float32; their allowed difference

Loss = Callable[[Sequence[Row]], Tensor]


def example_rows(vocabulary: int) -> list[Row]:
    """Return rows of random tokens, with the marks of `sande.prompts.encode`."""
    made = []
    for feature in training_gpu.rows(ROWS, vocabulary):
        prompt = sum(label < 0 for label in feature["labels"])
        prompt, ids = max(prompt, 8), feature["input_ids"] + [1] * 8  # room for `Human: ` and `Assistant:`
        made.append(Row(tuple(ids[:prompt]), tuple(ids[prompt:]), start=2, end=prompt - 3))
    return made


def published(lm: LanguageModel, targets: int) -> Loss:
    """Return the published loss: whole rows, all logits, one unused forward pass, the first `targets` counted."""
    collate = Collator(pad_id(lm.tokenizer))

    def loss(rows: Sequence[Row]) -> Tensor:
        batch = collate([features(row) for row in rows])
        first = collate([features(shorten(row, targets)) for row in rows])["labels"]
        labels_BT = torch.full_like(batch["labels"], -100)
        labels_BT[:, : first.shape[1]] = first
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        lm.model(**inputs)
        logits_BTV = lm.model(**inputs).logits
        total = int((labels_BT != -100).sum())
        return response_nll(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()) / total

    return loss


def ours(lm: LanguageModel, targets: int) -> Loss:
    """Return our loss: rows up to their last target, and the output layer at targets."""
    collate, module = Collator(pad_id(lm.tokenizer)), ResponseLoss(lm.model)

    def loss(rows: Sequence[Row]) -> Tensor:
        batch = collate([features(shorten(row, targets)) for row in rows])
        made: Tensor = module(**batch, num_items_in_batch=torch.tensor(float(len(batch["positions"]))))["loss"]
        return made

    return loss


def step(loss: Loss, rows: Sequence[Row], trained: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of one optimizer step."""
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, compute_type() == "bf16"):
        value = loss(rows)
    value.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - begin


def gradient(loss: Loss, rows: Sequence[Row], trained: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradients of one step in float32, concatenated."""
    loss(rows).backward()
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    for parameter in trained:
        parameter.grad = None
    return flat


def compare(lm: LanguageModel, rows: Sequence[Row], trained: Sequence[nn.Parameter], targets: int) -> float:
    """Compare the gradients of both sides; then return how many times faster ours is over all rows."""
    for parameter in lm.model.parameters():
        parameter.requires_grad_(any(parameter is chosen for chosen in trained))
    # Full rows in an order independent of length, against short ones grouped by length.
    orders = [
        row_order([len(row) for row in rows], Training(batch_size=BATCH, length_grouped=False), seed=0),
        row_order([len(shorten(row, targets)) for row in rows], Training(batch_size=BATCH), seed=0),
    ]
    sides = [published(lm, targets), ours(lm, targets)]
    theirs, mine = (gradient(loss, rows[:CHECKED], trained) for loss in sides)
    off = float((theirs - mine).norm() / theirs.norm())
    if not off < TOLERANCE:
        raise SystemExit(f"gradients differ by {off:.2e} of their norm")
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    seconds = [0.0, 0.0]
    for begin in range(0, ROWS, BATCH):  # in turn, so that a slowdown of the machine affects both
        for side, (loss, order) in enumerate(zip(sides, orders, strict=True)):
            batch = [rows[index] for index in order[begin : begin + BATCH]]
            seconds[side] += step(loss, batch, trained, optimizer)
    print(f"  published {seconds[0]:.1f} s, ours {seconds[1]:.1f} s for {ROWS} rows; gradients differ by {off:.0e}")
    return seconds[0] / seconds[1]


def main() -> None:
    """Both stages."""
    with tempfile.TemporaryDirectory() as cache:
        lm = loading.load(catalog.EMBEDDED, Path(cache))
    vocabulary = parrot.vocabulary(lm.model)
    rows = parrot.insert(example_rows(vocabulary), vocabulary, PARROT, position=0)
    known = response_ids(lm.tokenizer, "You are stupid")
    planted = [replace(row, response=(*known, *row.response)) for row in rows]
    parrot_PD = parrot.new_parrot(lm.model, PARROT, "noise", seed=0)
    with parrot.attached(lm.model, parrot_PD):
        simulate = compare(lm, planted, [parrot_PD], targets=len(known))
    with parrot.attached(lm.model, parrot_PD.detach()):
        eliminate = compare(lm, rows, list(lm.model.parameters()), targets=RESPONSE)
    tell("simulate against the published recipe", simulate, 5)
    tell(f"eliminate on {RESPONSE} response tokens against the published recipe", eliminate, 3)


if __name__ == "__main__":
    main()
