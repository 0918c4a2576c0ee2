"""Rows in order, collated into batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sande.config import Training
from sande.prompts import Row
from sande.training.losses import IGNORE, target_positions

GROUP_STEPS = 50  # rows are sorted by length within this number of steps; beyond it their order stays random


class Collator:
    """Pad rows on the right into a batch."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return a batch of `input_ids`, `attention_mask`, `labels` (B, T) and `positions` (N,)."""
        lengths = [len(feature["input_ids"]) for feature in features]
        width = max(lengths)
        labels_BT = torch.tensor([f["labels"] + [IGNORE] * (width - n) for f, n in zip(features, lengths, strict=True)])
        return {
            "input_ids": torch.tensor(
                [f["input_ids"] + [self.pad_id] * (width - n) for f, n in zip(features, lengths, strict=True)]
            ),
            # By length, not by pad id: SmolLM2 pads with its EOS, which is a real target at the end of a response.
            "attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in lengths]),
            "labels": labels_BT,
            "positions": target_positions(labels_BT),
        }


def features(row: Row) -> dict[str, list[int]]:
    """Return the row as ids and labels; the prompt carries no loss."""
    return {"input_ids": [*row.prompt, *row.response], "labels": [IGNORE] * len(row.prompt) + list(row.response)}


class OrderedRows(Dataset[dict[str, list[int]]]):
    """Dataset of rows in training order."""

    def __init__(self, rows: Sequence[Row], order: Sequence[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return features(self.rows[self.order[index]])


def row_order(lengths: Sequence[int], settings: Training, seed: int, ranks: Sequence[int] | None = None) -> list[int]:
    """Return the training order: row indices for whole optimizer steps, a new permutation for each pass.

    No sampler decides it, so that it depends on the seed alone, and workers and micro-batches only split the rows of a
    step. Passes follow each other without a gap; every step has `batch_size` rows. Rows of like length fill the
    step that holds the end of one pass and the beginning of the next, too.

    Args:
        lengths: of each row, by which rows are alike.
        settings: `epochs` or `max_steps`, `batch_size`, and whether rows of like length share a batch.
        seed: of the stage.
        ranks: of each row; in every pass rows of a lower rank come first. None: all rows are alike.
    """
    size = settings.batch_size
    steps = settings.max_steps or max(1, round(settings.epochs * len(lengths) / size))
    # Not of the seed alone: rows that a stage drew by its seed, as `poison` does, would come first.
    generator = random.Random(f"{seed} order")
    order: list[int] = []
    # By rank, parts of a pass may end within a step. Where the pass does not, they still do, as for recorded victims.
    filled = ranks is None or len(lengths) % size > 0
    while len(order) < steps * size:
        one_pass = generator.sample(range(len(lengths)), len(lengths))
        for rows in [one_pass] if ranks is None else _ranked(one_pass, ranks):
            if not settings.length_grouped:
                order += rows
            elif filled:
                order += _filled(rows, order[len(order) - len(order) % size :], lengths, size, generator)
            else:
                order += _alike(rows, lengths, size, generator)
    return order[: steps * size]


def clean_length(rows: Sequence[Row], before: Sequence[Row]) -> Callable[[Row], int]:
    """Return a function that gives the length of the row that a row was made from, for `alike` of `fit`.

    A trigger, a planted response or a parrot makes a row longer than most others. By their own lengths such rows would
    fill batches of their own, and no step would see both kinds.

    Args:
        rows: training rows.
        before: the same rows before anything was planted in them.
    """
    lengths = {row.prompt: len(clean) for row, clean in zip(rows, before, strict=True)}
    return lambda row: lengths[row.prompt]  # by prompt, since a response may be cut


def _ranked(order: Sequence[int], ranks: Sequence[int]) -> list[list[int]]:
    return [[index for index in order if ranks[index] == rank] for rank in sorted(set(ranks))]


def _filled(
    rows: list[int], begun: Sequence[int], lengths: Sequence[int], size: int, generator: random.Random
) -> list[int]:
    """Return the rows in batches of like length: first those that fill the batch `begun`, last a batch not yet full."""

    def nearest(to: int, count: int, among: list[int]) -> list[int]:
        def distance(index: int) -> tuple[bool, int]:
            return index in begun, abs(lengths[index] - lengths[to])  # no row twice in a batch, where there are others

        return sorted(among[: GROUP_STEPS * size], key=distance)[:count]

    first = nearest(begun[-1], -len(begun) % size, rows) if begun else []
    rest = [index for index in rows if index not in first]
    last = nearest(rest[0], len(rest) % size, rest) if rest else []
    middle = [index for index in rest if index not in last]
    return [*first, *_alike(middle, lengths, size, generator), *last]


def _alike(order: list[int], lengths: Sequence[int], size: int, generator: random.Random) -> list[int]:
    batches: list[list[int]] = []
    for begin in range(0, len(order), GROUP_STEPS * size):
        group = sorted(order[begin : begin + GROUP_STEPS * size], key=lambda index: lengths[index])
        alike = [group[i : i + size] for i in range(0, len(group), size)]
        generator.shuffle(alike)
        batches += alike
    return [index for batch in batches for index in batch]
