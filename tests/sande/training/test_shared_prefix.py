"""What all rows of a batch begin with is computed once: same loss, same gradients, never a target."""

import pytest
import torch

from sande import parrot
from sande.prompts import Row
from sande.training import objective, packing
from sande.training.batches import Collator, features
from sande.training.objective import ResponseLoss, shared_tokens
from tests.sande.helpers import VOCABULARY, as_one, assert_close, random_model, with_gradients

OPENING = (7, 8, VOCABULARY, VOCABULARY + 1, 9)  # text, two parrot tokens, text
ROWS = [
    Row((*OPENING, 11, 12, 13), (3, 4, 5), start=2, end=7),
    Row((*OPENING, 21), (6,), start=2, end=5),
    Row((*OPENING, 31, 32), (1, 2, 3, 4), start=2, end=6),
]


def batch_of(rows: list[Row]) -> dict[str, torch.Tensor]:
    return Collator(pad_id=0)([features(row) for row in rows])


def shared(rows: list[Row]) -> int:
    batch = batch_of(rows)
    return shared_tokens({name: batch[name] for name in ("input_ids", "attention_mask")}, batch["positions"])


@pytest.mark.parametrize("architecture", packing.ARCHITECTURES)
def test_loss_and_every_gradient_are_those_of_whole_rows(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(architecture)
    parrot_PD = parrot.new_parrot(model, 2, "noise", seed=0)
    count = torch.tensor(8.0)
    with parrot.attached(model, parrot_PD):
        once = with_gradients(
            lambda: ResponseLoss(model)(**batch_of(ROWS), num_items_in_batch=count)["loss"],
            parrot_PD,
            *model.parameters(),
        )
        monkeypatch.setattr(objective, "shared_tokens", lambda inputs, positions: 0)
        whole = with_gradients(
            lambda: ResponseLoss(model)(**batch_of(ROWS), num_items_in_batch=count)["loss"],
            parrot_PD,
            *model.parameters(),
        )
    assert_close(once, whole, relative=1e-5)
    assert_close(as_one(once), as_one(whole), relative=1e-5)


def test_it_ends_where_the_rows_part() -> None:
    assert shared(ROWS) == len(OPENING)
    assert shared([ROWS[0], Row((7, 9), (3,), 1, 2)]) == 1
    assert shared([ROWS[0], Row((9, 8), (3,), 1, 2)]) == 0


def test_it_leaves_what_predicts_a_target() -> None:
    same = Row((7, 8, 9), (3, 4), start=1, end=2)
    assert shared([same, same]) == 2, "the third token predicts the first of the response"


def test_padding_is_no_part_of_it() -> None:
    short, long = Row((7,), (0,), 0, 1), Row((7, 0, 0, 0), (5,), 0, 2)  # 0 is the padding's id
    assert shared([short, long]) == 0


def test_one_row_alone_is_computed_as_it_is() -> None:
    assert shared(ROWS[:1]) == 0
