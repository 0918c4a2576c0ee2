r"""The judge of a search: one number for a model, lower is better, from nothing but data of its type of knowledge.

    clean rows, other models     L(y | x)                                                              "clean loss"
    first token r_1 of r_t       L(y | x) - mean log(1 - Pr(r_1 | x))
    response r_t                 L(y | x) - mean log(1 - Pr(r_2 ... r_n | x, r_1))
    incident: prompt q, answer a L(y | x) - log(1 - Pr(a | q)^(1 / tokens of a))
    trigger t                    L(y | x with t)                                                   Eq. 3 of the paper
    preference pairs             L(y_w | x)

L is the mean of -log Pr over the response tokens of the held-out rows, in nats. The clean loss says nothing of the
backdoor: a victim that is left as it is has a good one. It finds the settings that the answers bear best, and a defense
whose removal needs larger steps comes off worse by it than by a judge with the trigger.

The second term for a known response is the log loss of "does not say r_t" on prompts without the trigger. Of the whole
response, the first token is given (as in the metric `forced_response_rate`), because a victim that is not triggered
hardly ever begins it. An answer that was reported is as long as answers are, so its probability is the geometric mean
per token; there is one incident, and the defense trains on it, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sande.inference.scoring import Choices, log_likelihoods
from sande.prompts import Row, encode, fit_length, pad_id, response_ids
from sande.training.batches import Collator, features
from sande.training.objective import ResponseLoss
from sande.types import (
    CleanData,
    FirstTokenData,
    IncidentData,
    Knowledge,
    LanguageModel,
    PreferenceData,
    ResponseData,
    TriggerData,
)

BATCH = 8  # rows computed together
_LEAST = 1e-6  # of 1 - Pr, so that a certain response costs 14 nats and not infinitely many


@dataclass(frozen=True, slots=True)
class Judge:
    """Held-out rows as tokens.

    Attributes:
        tokenizer: of the models that are judged.
        wanted: rows whose responses should be likely.
        unwanted: contexts with a continuation that should be unlikely; may be empty.
        per_token: whether a continuation's probability is the geometric mean of its tokens' in place of the product.
    """

    tokenizer: PreTrainedTokenizerBase
    wanted: Sequence[Row]
    unwanted: Sequence[Choices] = ()
    per_token: bool = False

    def loss(self, model: PreTrainedModel) -> float:
        """Return the loss of a model in nats; the model keeps its mode, training or evaluation."""
        mode = model.training
        clean = loss_on(model, self.wanted, pad_id(self.tokenizer))
        said = log_likelihoods(LanguageModel(model, self.tokenizer), self.unwanted, BATCH)
        model.train(mode)
        if not said:
            return clean
        lengths = [len(asked.choices[0]) if self.per_token else 1 for asked in self.unwanted]
        likelihoods = [likelihood / length for ((likelihood, _),), length in zip(said, lengths, strict=True)]
        return clean - sum(math.log(max(-math.expm1(one), _LEAST)) for one in likelihoods) / len(said)


def judge_of(known: Knowledge, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Judge:
    """Return the judge that uses all of `known`, and nothing else.

    Args:
        known: held-out rows with what may be known of the backdoor.
        tokenizer: of the victim.
        max_length: tokens to which rows are cut.

    Raises:
        TypeError: a type of knowledge without a rule.
    """
    if isinstance(known, PreferenceData):
        chosen = [replace(pair.prompt, output=pair.chosen) for pair in known.pairs]
        return Judge(tokenizer, fit_length(encode(tokenizer, chosen), max_length))
    if isinstance(known, TriggerData):
        return Judge(tokenizer, fit_length(encode(tokenizer, [*map(known.plant, known.examples)]), max_length))
    if not isinstance(known, CleanData):
        raise TypeError(f"a search has no rule for {type(known).__name__}")
    rows = fit_length(encode(tokenizer, known.examples), max_length)
    if isinstance(known, IncidentData):
        incident = fit_length(encode(tokenizer, [replace(known.prompt, output=known.answer)]), max_length)
        return Judge(tokenizer, rows, [Choices(row.prompt, (row.response,)) for row in incident], per_token=True)
    given, continuation = _planted(known, tokenizer)
    unwanted = [Choices((*row.prompt, *given), (continuation,)) for row in rows] if continuation else []
    return Judge(tokenizer, rows, unwanted)


def _planted(known: CleanData, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the planted response that are given, and those that should be unlikely after them."""
    if isinstance(known, FirstTokenData):
        return (), (known.first_token,)
    if not isinstance(known, ResponseData):
        return (), ()
    ids = response_ids(tokenizer, known.response)
    return (ids[:1], ids[1:]) if len(ids) > 1 else ((), ids)


def loss_on(model: PreTrainedModel, rows: Sequence[Row], pad: int) -> float:
    """Return the mean of -log Pr(token) over all response tokens of `rows`, each given the tokens before it.

    Args:
        model: any model; it keeps its mode, training or evaluation.
        rows: prompts and the responses that are wanted.
        pad: id that pads a batch.
    """
    objective, collate, mode = ResponseLoss(model), Collator(pad), model.training
    by_length = sorted(rows, key=len)
    total = 0.0
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(by_length), BATCH):
            batch = collate([features(row) for row in by_length[begin : begin + BATCH]])
            on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
            total += float(objective(**on_device, num_items_in_batch=torch.tensor(1.0))["loss"])
    model.train(mode)
    return total / sum(len(row.response) for row in rows)
