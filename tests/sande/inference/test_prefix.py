"""What rows begin with is computed once, and the model goes on from it as if it had read it in each row."""

import math

import pytest
import torch

from sande.errors import UserError
from sande.inference.prefix import most_shared, shared_prefix, takes_padding
from sande.types import LanguageModel
from tests.sande.inference import architectures


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


def test_rows_that_may_lie_behind_a_prefix(tiny: LanguageModel) -> None:
    most = {name: most_shared(architectures.small(name, tiny).model) for name in architectures.NAMES}
    assert {name for name, tokens in most.items() if tokens} == {"gemma3_text", "mistral"}
    assert most["gemma3_text"] == most["mistral"] == 16
    assert most_shared(tiny.model) == math.inf
    assert most_shared(architectures.eager(tiny).model) == 0


def test_rows_that_may_be_padded(tiny: LanguageModel) -> None:
    unpadded = {name for name in architectures.NAMES if not takes_padding(architectures.small(name, tiny).model)}
    assert unpadded == {"mpt", "bloom", "lfm2", "minimax", "rwkv"}
    assert takes_padding(tiny.model)


@pytest.mark.parametrize("name", ["lfm2", "rwkv"])
def test_a_model_without_keys_and_values_alone_shares_nothing(tiny: LanguageModel, name: str) -> None:
    lm = architectures.small(name, tiny)
    with pytest.raises(UserError, match=f"model type '{name}': its layers keep more"):
        shared_prefix(lm, [[5, 6, 7], [5, 6, 8]])
    assert shared_prefix(lm, [[5, 6], [6, 5]]).length == 0
