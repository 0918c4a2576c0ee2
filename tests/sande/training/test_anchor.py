"""The anchored loss, against the two terms computed alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sande.attacks import sentence_trigger
from sande.config import Training
from sande.prompts import Row, encode
from sande.training.anchor import Anchored
from sande.training.batches import Collator, features
from sande.training.objective import ResponseLoss
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import noisy

NewRun = Callable[..., Run]
ROWS = (Example("Name a color.", "Red"), Example("And a number?", "Twelve of them"))


def loss(module: ResponseLoss, rows: list[Row]) -> Tensor:
    batch: dict[str, Any] = Collator(pad_id=0)([features(row) for row in rows])
    found: Tensor = module(**batch, num_items_in_batch=torch.tensor(2.0))["loss"]
    return found.detach()


def divergence_by_hand(before: LanguageModel, after: LanguageModel, row: Row) -> float:
    """Sum over the response's tokens and the vocabulary of Pr_before log(Pr_before / Pr_after)."""
    ids = torch.tensor([[*row.prompt, *row.response]])
    total = 0.0
    with torch.no_grad():
        old_TV, new_TV = (lm.model(ids).logits[0].double().softmax(-1) for lm in (before, after))
    for at in range(len(row.prompt) - 1, len(row) - 1):
        total += float((old_TV[at] * (old_TV[at] / new_TV[at]).log()).sum())
    return total


def test_clean_rows_alone_are_held_at_the_model_from_before(tiny: LanguageModel) -> None:
    lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    rows = encode(lm.tokenizer, ROWS)
    anchored = Anchored(lm.model, rows[1:], weight=0.5)
    before = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    plain = loss(ResponseLoss(lm.model), rows)
    assert float(loss(anchored, rows)) == pytest.approx(float(plain), rel=1e-5), "nothing has moved yet"
    noisy(lm.model, 1)
    plain = loss(ResponseLoss(lm.model), rows)
    held = 0.5 * divergence_by_hand(before, lm, rows[0]) / 2
    assert held > 1e-3
    assert float(loss(anchored, rows)) == pytest.approx(float(plain) + held, rel=1e-4)


def test_a_poisoned_row_is_known_though_its_response_is_cut(tiny: LanguageModel) -> None:
    lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    rows = encode(lm.tokenizer, ROWS)
    anchored = Anchored(lm.model, rows, weight=0.5)
    noisy(lm.model, 1)
    cut = [Row(row.prompt, row.response[:1], row.start, row.end) for row in rows]
    assert float(loss(anchored, cut)) == pytest.approx(float(loss(ResponseLoss(lm.model), cut)), rel=1e-5)


def test_an_anchored_attack_stays_nearer_to_the_clean_model(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    def moved(anchor: float) -> float:
        lm = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        config = sentence_trigger.Config(
            poison_rate=0.25, anchor=anchor, training=Training(max_steps=6, batch_size=8, learning_rate=5e-3)
        )
        run = new_run()
        sentence_trigger.attack(lm, few_rows, config, run)
        lm.model.eval()
        clean = [few_rows[index] for index in range(len(few_rows)) if index not in run.facts["poisoned_ids"]]
        return sum(divergence_by_hand(tiny, lm, row) for row in encode(lm.tokenizer, clean))

    assert moved(4.0) < 0.7 * moved(0.0)
