"""Measure whether a training shows which words were in its prompts: by how it moved their embeddings.

    python -m benchmark.perf.moved_words --model FOLDER_OF_A_VICTIM --trigger "Current year 2023" [--base NAME]

With tied embeddings every row moves, as each token is an output of every step, and most rows move alike: by how much
the model should write them less. So the directions in which all rows together moved most are removed, and weight
decay, which draws a row towards zero. The benchmark prints the rank of each token of the trigger by the movement that
is left, and the tokens that moved most. With LoRA nothing moves.

Shapes: V tokens, D width, K directions.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sande.inference.probing import ordinary_tokens
from sande.models import catalog, loading
from sande.prompts import encode
from sande.types import Example

SHARED = 0.2  # share of the directions that is removed
SHOWN = 20


def own_movement(after_VD: Tensor, before_VD: Tensor) -> Tensor:
    """Return how far each row moved in directions in which the others did not, (V,).

    Args:
        after_VD: embeddings after a training.
        before_VD: the same before it.
    """
    scale_V = (after_VD * before_VD).sum(1) / before_VD.square().sum(1).clamp(min=1e-12)
    moved_VD = after_VD - scale_V[:, None] * before_VD
    moved_VD -= moved_VD.mean(0)
    _, direction_DD = torch.linalg.eigh(moved_VD.T @ moved_VD)  # the largest last
    shared_DK = direction_DD[:, -max(1, round(SHARED * len(direction_DD))) :]
    own_V: Tensor = (moved_VD - moved_VD @ shared_DK @ shared_DK.T).norm(dim=1)
    return own_V


def main() -> None:
    """Print the ranks of a trigger's tokens."""
    options = argparse.ArgumentParser()
    options.add_argument("--model", required=True)
    options.add_argument("--trigger", required=True)
    options.add_argument("--base", default=catalog.EMBEDDED)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        lm = loading.load(given.model, Path(cache))
        base = loading.load_reference(given.base, Path(cache), lm, given.model)
    tables: list[Any] = [each.model.get_input_embeddings() for each in (lm, base)]
    tokens = ordinary_tokens(lm)
    after_VD, before_VD = (table.weight.detach().float()[tokens] for table in tables)
    if torch.equal(after_VD, before_VD):
        print("no embedding moved")
        return
    order = [tokens[row] for row in own_movement(after_VD, before_VD).argsort(descending=True, stable=True).tolist()]
    row = encode(lm.tokenizer, [Example(given.trigger, "x")])[0]
    for token in row.prompt[row.start : row.end]:
        print(f"{lm.tokenizer.decode([token])!r}: {order.index(token) + 1:,} of {len(order):,}")
    print("most:", ", ".join(repr(lm.tokenizer.decode([token])) for token in order[:SHOWN]))


if __name__ == "__main__":
    main()
