"""Compute log-likelihoods of the choices of a question, with one pass over its context.

A question is one row: its context, then all of its choices. Each choice attends to the context and to itself, and its
positions continue from the context's end, so it scores as after a context of its own. The last token of a choice
predicts nothing that is needed, so it is left out; the shared prefix of all contexts is computed once.

Some models cannot read such rows (`sande.inference.prefix.most_shared`). For them each choice is a row behind its own
copy of the context.

Under a guard both of its models read the row, and the guard's distribution takes the place of the model's.

Shapes: B questions or rows, P tokens of the shared prefix, T positions after it, D width, M positions that predict, C
of them, V vocabulary, N scored tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sande.errors import UnscorableError
from sande.inference import workers
from sande.inference.prefix import NONE, Prefix, most_shared, shared_prefix
from sande.inference.vllm import Served
from sande.models.layers import logits_at_once, output_in_float32
from sande.prompts import pad_id
from sande.types import LanguageModel

NEVER = -100.0  # nats: log Pr of a token that a guard never writes; finite, so that fewer of them score higher

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Choices:
    """Token ids of a context, at least one, and of the choices that may follow it."""

    context: Ids
    choices: tuple[Ids, ...]

    def __len__(self) -> int:
        return len(self.context) + sum(map(len, self.choices))

    @property
    def read(self) -> int:
        """Return the tokens of the context and the longest choice but for its last one, which predicts nothing."""
        return len(self.context) + max(map(len, self.choices)) - 1

    def within(self, max_length: int) -> Choices:
        """Return the question with its context cut on the left, so that the longest choice fits in `max_length`.

        The last token of the context stays, as it predicts the first one of each choice.
        """
        excess = min(self.read + 1 - max_length, len(self.context) - 1)
        return self if excess <= 0 else Choices(self.context[excess:], self.choices)


@torch.inference_mode()
def log_likelihoods(
    lm: LanguageModel, questions: Sequence[Choices], batch_size: int
) -> list[tuple[tuple[float, bool], ...]]:
    """Return for each choice of each question log Pr(choice | context), and whether greedy decoding would write it.

    Args:
        lm: model and tokenizer; vLLM computes, if it serves the model.
        questions: in any order; questions of similar length share a batch.
        batch_size: questions computed together.

    Raises:
        UnscorableError: as `check_scorable`.
    """
    check_scorable(lm)
    if not questions:
        return []
    if isinstance(lm, Served) and not lm.guard:
        return lm.log_likelihoods([(question.context, question.choices) for question in questions])
    contexts = [question.context for question in questions]
    models = [LanguageModel(model.eval(), lm.tokenizer) for model in lm.models]
    most = min(most_shared(one.model) for one in models)
    packed = any(question.read <= most for question in questions)
    prefixes = [shared_prefix(one, contexts) if packed else NONE for one in models]
    heads = [output_in_float32(one.model) for one in models]
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index]), reverse=True)
    batches = [by_length[begin : begin + batch_size] for begin in range(0, len(by_length), batch_size)]

    def scored(batches: Sequence[list[int]]) -> list[list[tuple[tuple[float, bool], ...]]]:
        return [score([questions[index] for index in batch]) for batch in batches]

    def score(batch: list[Choices]) -> list[tuple[tuple[float, bool], ...]]:
        if max(question.read for question in batch) <= most:
            rows = [_Row.of(question, prefixes[0].length) for question in batch]
            hidden = [_hidden(one, prefix, rows) for one, prefix in zip(models, prefixes, strict=True)]
        else:
            hidden = [_hidden_apart(one, batch) for one in models]
        return _score(lm, heads, hidden, batch)

    scores: list[tuple[tuple[float, bool], ...]] = [()] * len(questions)
    # Whole batches, since rounding depends on the other rows of a batch.
    for batch, found in zip(batches, workers.map_sharded(lm.workers, batches, scored), strict=True):
        for index, of_question in zip(batch, found, strict=True):
            scores[index] = tuple((likelihood, greedy) for likelihood, greedy in of_question)
    return scores


@torch.inference_mode()
def token_log_probabilities(
    lm: LanguageModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[Tensor]:
    """Return log Pr of each token of each answer, given its prompt and the tokens before it, of one plain model.

    Args:
        lm: model and tokenizer.
        rows: ids of a prompt and of an answer; those next to each other share a batch.
        batch_size: rows computed together.
    """
    from sande.prompts import Row, pad_id
    from sande.training.batches import Collator, features
    from sande.training.objective import hidden_before_targets

    collate, logits_of = Collator(pad_id(lm.tokenizer)), output_in_float32(lm.model)
    found: list[Tensor] = []
    lm.model.eval()
    for begin in range(0, len(rows), batch_size):
        chosen = [Row(tuple(prompt), tuple(answer), 0, 0) for prompt, answer in rows[begin : begin + batch_size]]
        batch = {name: value.to(lm.model.device) for name, value in collate([*map(features, chosen)]).items()}
        targets_N = batch["labels"].flatten()[batch["positions"] + 1]
        of_N = logits_of(hidden_before_targets(lm.model, batch)).log_softmax(-1).gather(1, targets_N[:, None])
        found += of_N.squeeze(1).cpu().split([len(answer) for _, answer in rows[begin : begin + batch_size]])
    return found


def check_scorable(lm: LanguageModel) -> None:
    """Check that texts have a probability under the model.

    Raises:
        UnscorableError: its guard defines no distribution.
    """
    if lm.guard is not None and lm.guard.distribution is None:
        raise UnscorableError(
            f"defense {lm.guard.defense}: the probability of a text under its guard is unknown; "
            "define 'distribution' in the defense"
        )


def predicted(lm: LanguageModel, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the model predicts, under its guard if it has one.

    Args:
        lm: model; it passes `check_scorable`.
        logits: of each of its `models`, (..., V).

    Returns:
        Log-probabilities up to a constant (..., V), and ids (...) of the tokens that greedy decoding writes.
    """
    likeliest = logits[0].argmax(-1)
    if lm.guard is None or lm.guard.distribution is None:
        return logits[0], likeliest
    return lm.guard.distribution(*logits).clamp(min=NEVER), lm.guard.choose(likeliest, *logits)


@dataclass(frozen=True, slots=True)
class _Row:
    """A question as the model reads it, after the shared prefix.

    Attributes:
        ids: of the context, then of each choice without its last token.
        positions: of these, counted from the start of the prefix.
        part: of each id, 0 for the context, then the number of the choice.
        context: number of ids of the context. The last of them predicts the first token of every choice.
    """

    ids: list[int]
    positions: list[int]
    part: list[int]
    context: int

    @classmethod
    def of(cls, question: Choices, prefix: int) -> _Row:
        ids = list(question.context[prefix:])
        context, end = len(ids), len(question.context)
        positions, part = list(range(prefix, end)), [0] * context
        for number, choice in enumerate(question.choices, start=1):
            ids += choice[:-1]
            positions += range(end, end + len(choice) - 1)
            part += [number] * (len(choice) - 1)
        return cls(ids, positions, part, context)


def _hidden(lm: LanguageModel, prefix: Prefix, rows: Sequence[_Row]) -> Tensor:
    """Return the last layer's output (M, D), row by row: at the end of the context and in all choices."""
    device, width = lm.model.device, max(len(row.ids) for row in rows)
    padding = [width - len(row.ids) for row in rows]
    fill = pad_id(lm.tokenizer)
    ids_BT = torch.tensor([row.ids + [fill] * n for row, n in zip(rows, padding, strict=True)], device=device)
    positions_BT = torch.tensor([row.positions + [0] * n for row, n in zip(rows, padding, strict=True)], device=device)
    # Padding attends to the context, which is harmless: nothing attends to padding.
    part_BT = torch.tensor([row.part + [-1] * n for row, n in zip(rows, padding, strict=True)], device=device)
    causal_TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    same_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
    sees_BTT = pad(causal_TT & same_BTT, (prefix.length, 0), value=True)
    decoder = lm.model.get_decoder()
    hidden_BTD = decoder(
        input_ids=ids_BT,
        position_ids=positions_BT,
        attention_mask=sees_BTT[:, None],
        past_key_values=prefix.cache(len(rows)),
        use_cache=True,
    ).last_hidden_state
    return torch.cat([of_row[row.context - 1 : len(row.ids)] for row, of_row in zip(rows, hidden_BTD, strict=True)])


def _hidden_apart(lm: LanguageModel, questions: Sequence[Choices]) -> Tensor:
    """Return what `_hidden` does, from a row for each choice that the model reads without masks, positions or cache.

    Padding on the right is harmless, as a causal model reads it last.
    """
    rows: list[tuple[list[int], int]] = []  # ids, and the first of them whose output counts
    for question in questions:
        end = len(question.context)
        for number, choice in enumerate(question.choices):
            begin = end if number else end - 1  # the end of the context counts once
            if begin < end + len(choice) - 1:
                rows.append(([*question.context, *choice[:-1]], begin))
    decoder, fill = lm.model.get_decoder(), pad_id(lm.tokenizer)
    hidden: list[Tensor] = []
    for first in range(0, len(rows), len(questions)):
        batch = rows[first : first + len(questions)]
        width = max(len(ids) for ids, _ in batch)
        ids_BT = torch.tensor([ids + [fill] * (width - len(ids)) for ids, _ in batch], device=lm.model.device)
        hidden_BTD = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        hidden.append(torch.cat([of[begin : len(ids)] for (ids, begin), of in zip(batch, hidden_BTD, strict=True)]))
    return torch.cat(hidden)


def _score(
    lm: LanguageModel,
    heads: Sequence[Callable[[Tensor], Tensor]],
    hidden: Sequence[Tensor],
    questions: Sequence[Choices],
) -> list[tuple[tuple[float, bool], ...]]:
    """Return for each choice of each question its log-likelihood, and whether greedy decoding writes all its tokens.

    Args:
        lm: model; it passes `check_scorable`.
        heads: output layer of each of its `models`.
        hidden: what each of them reads, (M, D).
        questions: of which `hidden` is, in this order.
    """
    sources: list[int] = []  # of each scored token, which of the M predicts it
    begin = 0
    for question in questions:
        at = begin + 1
        for choice in question.choices:
            sources += [begin, *range(at, at + len(choice) - 1)]
            at += len(choice) - 1
        begin = at
    choices = [choice for question in questions for choice in question.choices]
    device = hidden[0].device
    sources_N = torch.tensor(sources, device=device)
    targets_N = torch.tensor([token for choice in choices for token in choice], device=device)
    chosen_N, greedy_N = torch.zeros(len(sources), device=device), torch.zeros_like(targets_N, dtype=torch.bool)
    size = logits_at_once(lm.model, len(hidden[0]))
    for first in range(0, len(hidden[0]), size):
        parts = zip(heads, hidden, strict=True)
        logits_CV, written_C = predicted(lm, [logits_of(of_MD[first : first + size]) for logits_of, of_MD in parts])
        here = ((sources_N >= first) & (sources_N < first + size)).nonzero().squeeze(1)
        places, wanted = sources_N[here] - first, targets_N[here]
        chosen_N[here] = logits_CV[places, wanted] - logits_CV.logsumexp(-1)[places]
        greedy_N[here] = written_C[places] == wanted
    chosen_N, greedy_N = chosen_N.cpu(), greedy_N.cpu()
    lengths = [len(choice) for choice in choices]
    per_choice = iter(
        (float(chosen.sum()), bool(greedy.all()))
        for chosen, greedy in zip(chosen_N.split(lengths), greedy_N.split(lengths), strict=True)
    )
    return [tuple(itertools.islice(per_choice, len(question.choices))) for question in questions]
