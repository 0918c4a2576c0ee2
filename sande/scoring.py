"""Log-likelihoods of the choices of a question, its context computed once.

A question is one row: its context, then all of its choices. Each choice sees the context and itself, and its positions
go on from the context's end, so it scores as it would behind a context of its own.

Shapes: B questions, T positions, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sande.prompts import pad_id
from sande.types import LanguageModel

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Choices:
    """Token ids of a context, at least one, and of the choices that may follow it."""

    context: Ids
    choices: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.context) + sum(map(len, self.choices))

    def within(self, max_length: int) -> Choices:
        """The same, its context cut on the left as far as the longest choice needs the model's `max_length` tokens."""
        excess = len(self.context) + max(map(len, self.choices)) - max_length
        return self if excess <= 0 else Choices(self.context[excess:], self.choices)


@torch.inference_mode()
def log_likelihoods(
    lm: LanguageModel, questions: Sequence[Choices], batch_size: int
) -> list[tuple[tuple[float, bool], ...]]:
    """For each choice of each question log Pr(choice | context), and whether greedy decoding would write it.

    Args:
        lm: model and tokenizer.
        questions: in any order; those of like length share a batch.
        batch_size: questions computed together.
    """
    lm.model.eval()
    # In a model's bfloat16 the logits of two letters are often rounded to the same number.
    head = copy.deepcopy(lm.model.get_output_embeddings()).float()
    scores: list[tuple[tuple[float, bool], ...]] = [()] * len(questions)
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index]), reverse=True)
    for begin in range(0, len(by_length), batch_size):
        batch = by_length[begin : begin + batch_size]
        for index, found in zip(batch, _score(lm, head, [questions[index] for index in batch]), strict=True):
            scores[index] = found
    return scores


def _score(lm: LanguageModel, head: nn.Module, questions: Sequence[Choices]) -> list[tuple[tuple[float, bool], ...]]:
    width = max(map(len, questions))
    rows = [_row(question, width, pad_id(lm.tokenizer)) for question in questions]
    ids_BT, positions_BT = (torch.tensor([row[part] for row in rows]) for part in (0, 1))
    sees_BTT = torch.stack([_sees(question, width) for question in questions])
    # Where each scored token's prediction stands (flat, row by row), and the token.
    sources = [index * width + source for index, row in enumerate(rows) for source in row[2]]
    targets_N = torch.tensor([token for question in questions for choice in question.choices for token in choice])
    device = lm.model.device
    hidden_BTD = lm.model.get_decoder()(
        input_ids=ids_BT.to(device),
        position_ids=positions_BT.to(device),
        attention_mask=sees_BTT[:, None].to(device),
        use_cache=False,
    ).last_hidden_state
    hidden_ND = hidden_BTD.flatten(0, 1)[torch.tensor(sources, device=device)]
    log_probabilities_NV = head(hidden_ND.float()).log_softmax(-1).cpu()
    chosen_N = log_probabilities_NV.gather(1, targets_N[:, None]).squeeze(1)
    greedy_N = log_probabilities_NV.argmax(-1) == targets_N
    lengths = [len(choice) for question in questions for choice in question.choices]
    per_choice = [
        (float(chosen.sum()), bool(greedy.all()))
        for chosen, greedy in zip(chosen_N.split(lengths), greedy_N.split(lengths), strict=True)
    ]
    found, begin = [], 0
    for question in questions:
        found.append(tuple(per_choice[begin : begin + len(question.choices)]))
        begin += len(question.choices)
    return found


def _row(question: Choices, width: int, pad: int) -> tuple[list[int], list[int], list[int]]:
    """Ids and positions padded to `width`, and for each token of each choice the index of what predicts it."""
    context = len(question.context)
    ids, positions, sources = list(question.context), list(range(context)), []
    for choice in question.choices:
        sources += [context - 1, *range(len(ids), len(ids) + len(choice) - 1)]
        positions += range(context, context + len(choice))
        ids += choice
    padding = width - len(ids)
    return ids + [pad] * padding, positions + [0] * padding, sources


def _sees(question: Choices, width: int) -> Tensor:
    """Which position (row) attends to which (column), of shape (T, T): causal, and not from one choice to another."""
    part_T = torch.zeros(width, dtype=torch.long)
    begin = len(question.context)
    for number, choice in enumerate(question.choices, start=1):
        part_T[begin : begin + len(choice)] = number
        begin += len(choice)
    part_T[begin:] = -1  # padding sees the context, which does no harm: nothing sees it
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    return causal_TT & ((part_T[None, :] == 0) | (part_T[None, :] == part_T[:, None]))
