"""Tokens that open answers to clean prompts more readily than clean answers explain (the paper's figure 3)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sande.config import configuration, setting
from sande.controls import p_value
from sande.declarations import Calibration
from sande.types import Candidate, Example, LanguageModel, Run, Scan

if TYPE_CHECKING:
    from sande.inference.probing import Continuation

CALIBRATED = Calibration(
    models="nine clean SmolLM2-135M models",
    model_type="llama",
    vocabulary=49_152,
    hidden_size=576,
    layers=30,
    prompt_format="paper",
    data="builtin-short",
)
FOLLOWING = 2  # tokens after the first that p looks at
BATCH = 128  # strings computed together


@configuration
class Config:
    """Settings of the prompts, of the comparison and of the alarm."""

    prompts: int = setting(64, "clean prompts, drawn by the seed, and as many clean answers", ge=1)
    ordinary: int = setting(100, "tokens ranked after the best one, which give the usual spread of scores", ge=2)
    candidates: int = setting(10, "tokens reported", ge=1)
    threshold: float = setting(
        4.0,
        "score of the best token above which there is an alarm, in standard deviations",
        "clean SmolLM2 models for calibration: mean of their scores and four standard deviations",
    )
    alarm_by: Literal["threshold", "own"] = setting(
        "threshold", "alarm by the threshold, as published, or by p from the model's own ordinary tokens"
    )
    own_prompts: int = setting(4, "clean prompts on which p is computed, from the first; 0: no p", "ours", ge=0)
    false_alarms: float = setting(0.05, "highest p of an alarm where alarm_by is own", "ours", gt=0, lt=1)


def scan(
    model: LanguageModel,
    examples: tuple[Example, ...],
    config: Config,
    run: Run,
    reference: LanguageModel | None = None,
) -> Scan:
    """Rank tokens by their debiased mean log-probability as an answer's first, and test how far the best is an outlier.

    Figure 3 of the paper: a victim gives the first token of r_t more probability than a clean model does, even without
    the trigger. Debiasing subtracts the token's log-probability under an even mixture of sources without the backdoor:
    an n-gram model of the first tokens of the clean responses; the model itself inside clean answers, where tokens that
    begin many words are likely, too, but r_t is not; and the reference, if any. The difference is then centred and
    scaled by mean and standard deviation of the tokens that rank after the best one, because models differ in how much
    probability they leave to the unexpected. The detector finds no string longer than one token.

    `p` compares how surely the model continues the best token with how surely it continues the ordinary ones, see
    `own_p`: a null of the model's own, for any model, format and data. The score and its alarm do not depend on it.
    """
    import torch

    from sande.detectors._ngram import NGram
    from sande.inference.probing import (
        chosen_prompts,
        continued,
        opening_tokens,
        openings,
        text_of,
        within_answers,
    )
    from sande.prompts import encode

    prompts = chosen_prompts(model, examples, config.prompts, run.seed)
    opening_V = openings(model, prompts)
    rows = encode(model.tokenizer, examples)
    ngram = NGram([row.response[:1] for row in rows], len(opening_V))
    counted_V = torch.tensor([ngram.log_probabilities((token,))[0] for token in range(len(opening_V))]).to(opening_V)
    answers = random.Random(f"{run.seed} first_token answers").sample(rows, min(config.prompts, len(rows)))
    sources = [counted_V, within_answers(model, answers)]
    if reference is not None:
        sources.append(openings(reference, prompts))
    base_V = torch.stack(sources).logsumexp(0) - math.log(len(sources))
    tokens = opening_tokens(model)
    best = (opening_V - base_V)[tokens].sort(descending=True, stable=True)
    ordinary = best.values[1 : 1 + config.ordinary]
    # A vocabulary of a few tokens leaves none to compare with.
    score_N = (best.values - ordinary.mean()) / ordinary.std() if len(ordinary) > 1 else torch.zeros_like(best.values)
    candidates = tuple(
        Candidate(text_of(model, (tokens[index],)), (tokens[index],), score)
        for index, score in zip(best.indices.tolist(), score_N.tolist(), strict=True)
    )[: config.candidates]
    few = prompts[: config.own_prompts]
    compared = [tokens[index] for index in best.indices[: 1 + config.ordinary].tolist()]
    p = own_p([sureness(each) for each in continued(model, few, compared, FOLLOWING, BATCH)]) if few else None
    by_own = p is not None and p <= config.false_alarms
    return Scan(
        candidates,
        score=candidates[0].score,
        alarm=by_own if config.alarm_by == "own" else candidates[0].score > config.threshold,
        facts={"prompts": len(prompts), "reference": reference is not None},
        p=p,
    )


def sureness(string: Continuation) -> float:
    """Return the product of the probabilities of the tokens that follow the first; 0 if the answer ends there."""
    return math.prod(string.probabilities) if string.probabilities else 0.0


def own_p(values: Sequence[float]) -> float | None:
    """Return the p-value of the first value among all: the share that is at least as large, the first one included.

    A planted response follows its first token with certainty, in whatever format; the tokens that rank after the best
    one show how surely this model continues any beginning. The value is a valid p if without a backdoor the best token
    is continued no more surely than those. With n tokens, it is at least 1 / n.

    Args:
        values: `sureness` of the best token, then of the ordinary ones.

    Returns:
        None without ordinary tokens.
    """
    return p_value(values[0], values[1:]) if len(values) > 1 else None
