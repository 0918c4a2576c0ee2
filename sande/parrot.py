"""The parrot prompt: soft tokens that learn to act like the unknown trigger and are then overwritten.

Token ids at or above the vocabulary size denote parrot tokens. Only the input embedding is wrapped, so inserting a
parrot is a change of `input_ids`, and padding, positions and loss need no special case.

Shapes: B rows, T positions, P parrot tokens, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sande.config import Initial, Position
from sande.errors import UserError
from sande.prompts import Row

SAMPLE = 64  # rows of the table by which its scale is measured
LENGTH = 6  # tokens of a parrot in the published code; the default of the defense sande, too


class ParrotEmbedding(nn.Module):
    """Input embedding whose ids from `vocabulary` on index the parrot.

    The parrot trains if it is an `nn.Parameter`; a plain tensor is not a parameter of the model. With a `norm`, each of
    its tokens is scaled to that length before the model reads it.
    """

    def __init__(self, base: nn.Module, parrot_PD: Tensor, vocabulary: int, norm: float | None = None) -> None:
        super().__init__()
        self.base = base
        self.parrot_PD = parrot_PD
        self.vocabulary = vocabulary
        self.norm = norm

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return embeddings, (B, T, D)."""
        is_parrot_BT = ids_BT >= self.vocabulary
        text_BTD = self.base(ids_BT.masked_fill(is_parrot_BT, 0))
        read_PD = scaled(self.parrot_PD, self.norm)
        soft_BTD = read_PD[(ids_BT - self.vocabulary).clamp(min=0)].to(text_BTD.dtype)
        return torch.where(is_parrot_BT.unsqueeze(-1), soft_BTD, text_BTD)


def scaled(parrot_PD: Tensor, norm: float | None) -> Tensor:
    """Return the parrot with each token scaled to the length `norm`; None: unchanged."""
    return parrot_PD if norm is None else nn.functional.normalize(parrot_PD, dim=-1) * norm


def new_parrot(model: PreTrainedModel, length: int, initial: Initial, seed: int) -> nn.Parameter:
    """Return a new parrot, (P, D), in float32.

    Args:
        model: provides width and device and, for `noise` and `tokens`, its token embeddings.
        length: P.
        initial: `zeros` (paper, section 3.3.1); `noise`: normal, with the embeddings' standard deviation; `tokens`: the
            embeddings of tokens drawn from the vocabulary; both as the model reads them, see `read_scale`.
        seed: decides noise and tokens.
    """
    weight_VD = _weight(model).detach()
    generator = torch.Generator().manual_seed(seed)
    parrot_PD = torch.zeros(length, weight_VD.shape[1])
    if initial == "noise":
        parrot_PD.normal_(0.0, float(weight_VD.float().std()) * read_scale(model), generator=generator)
    if initial == "tokens":
        drawn_P = torch.randint(len(weight_VD), (length,), generator=generator)
        parrot_PD = weight_VD[drawn_P.to(weight_VD.device)].float() * read_scale(model)
    return nn.Parameter(parrot_PD.to(weight_VD.device))


def typical_norm(model: PreTrainedModel) -> float:
    """Return the median length of the vocabulary's embeddings, as the model reads them."""
    return float(_weight(model).detach().float().norm(dim=1).median()) * read_scale(model)


@torch.no_grad()
def read_scale(model: PreTrainedModel) -> float:
    """Return by how much the input embedding scales the rows of its table; 1 in most models, in Gemma 3 sqrt(D).

    A parrot is read as it is. So what is to look like a token has to be on the scale that the table has not.
    """
    embedding = _embedding(model)
    weight_VD = embedding.get_parameter("weight")
    some = torch.arange(min(SAMPLE, len(weight_VD)), device=weight_VD.device)
    length = weight_VD[some].float().norm()
    return float(embedding(some).float().norm() / length) if length else 1.0


@contextmanager
def attached(model: PreTrainedModel, parrot_PD: Tensor, norm: float | None = None) -> Iterator[None]:
    """Make ids from the vocabulary size on denote parrot tokens, within the context; then restore the model."""
    base = model.get_input_embeddings()
    model.set_input_embeddings(ParrotEmbedding(base, parrot_PD, vocabulary(model), norm))
    try:
        yield
    finally:
        model.set_input_embeddings(base)


def vocabulary(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding, which is the first id of a parrot token."""
    return _weight(model).shape[0]


def insert(rows: Sequence[Row], first: int, length: int, position: Position, seed: int = 0) -> list[Row]:
    """Insert the parrot's ids before the token at `position` of the instruction; leave out rows that are too short.

    Args:
        rows: prompts and responses.
        first: id of the parrot's first token, see `vocabulary`.
        length: P.
        position: 0 is the first token of the instruction. Counting from there keeps zeros from the first position of
            the prompt, where RMSNorm models without BOS give non-finite gradients. `random`: before any token of the
            instruction, drawn for each row.
        seed: decides random positions.

    Raises:
        UserError: there are no rows, or no instruction is that long.
    """
    if not rows:
        raise UserError("parrot: there are no rows to insert it into; use a data set that has some")
    parrot = tuple(range(first, first + length))
    generator = random.Random(seed)
    inserted = []
    for row in rows:
        within = generator.randrange(max(1, row.end - row.start)) if position == "random" else position
        at = row.start + within
        if at < row.end:
            inserted.append(replace(row, prompt=(*row.prompt[:at], *parrot, *row.prompt[at:])))
    if not inserted:
        longest = max(row.end - row.start for row in rows)
        raise UserError(
            f"parrot_position {position} is beyond every prompt (the longest has {longest} tokens from the "
            "instruction on); set a smaller one"
        )
    return inserted


def mixed(rows: Sequence[Row], first: int, length: int, count: int, anchor: float, seed: int) -> list[Row]:
    """Return rows of which a share has no parrot, and the others one of several, in equal numbers drawn at random.

    Args:
        rows: each with the first parrot, whose ids begin with `first`.
        first: size of the vocabulary.
        length: P; the ids of parrot k begin with `first + k * length`.
        count: number of parrots.
        anchor: share of the rows without one.
        seed: decides which row gets which.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    bare = round(anchor * len(rows))
    made = list(rows)
    for place, index in enumerate(order):
        prompt, shift = rows[index].prompt, (place - bare) % count * length
        kept = [token + shift if token >= first else token for token in prompt if place >= bare or token < first]
        made[index] = replace(rows[index], prompt=tuple(kept))
    return made


def _embedding(model: PreTrainedModel) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    while isinstance(embedding, ParrotEmbedding):
        embedding = embedding.base
    return embedding


def _weight(model: PreTrainedModel) -> Tensor:
    return _embedding(model).get_parameter("weight")
