"""What rows begin with is computed once, and the model goes on from it as if it had read it in each row."""

import pytest
import torch

from sande.inference.prefix import shared_prefix
from sande.types import LanguageModel


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[5, 6, 7, 8], [5, 6, 9]], 2),
        ([[5, 6, 7, 8], [5, 6]], 1),  # the second row keeps a token of its own
        ([[5, 6, 7]] * 3, 2),
        ([[5, 6, 7]], 2),
        ([[5, 6], [6, 5]], 0),
        ([[5], [5, 6]], 0),
        ([], 0),
    ],
)
def test_its_length(tiny: LanguageModel, rows: list[list[int]], length: int) -> None:
    assert shared_prefix(tiny, rows).length == length


def test_the_model_goes_on_from_it(tiny: LanguageModel) -> None:
    rows = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12, 13]]
    prefix = shared_prefix(tiny, rows)
    assert prefix.length == 3
    for _ in range(2):  # a batch does not extend the next one's
        ids = torch.tensor([row[3:] for row in rows], device=tiny.model.device)
        logits = tiny.model(input_ids=ids, past_key_values=prefix.cache(2)).logits
        for row, mine in zip(rows, logits, strict=True):
            expected = tiny.model(input_ids=torch.tensor([row], device=tiny.model.device)).logits[0, 3:]
            torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
