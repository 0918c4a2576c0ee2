"""Compare multiple choice on a CPU: `sande.inference.scoring.log_likelihoods` against lm-eval's own loop (HFLM).

    python -m benchmark.perf.choices

Both sides score the same token ids of built-in questions with SmolLM2-135M, in batches of the same size: of lm-eval's
requests, each a context and one choice, and of our questions. In float32 each log-likelihood and each answer must
agree. The timing is in the type in which models are evaluated here. In bfloat16 lm-eval's loop rounds logits too, and
rounding decides near ties, so only the mean deviation is bounded.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from benchmark.perf.outcome import tell
from sande import compute
from sande.data.builtin import sets
from sande.inference.scoring import Choices, log_likelihoods
from sande.metrics import accuracy
from sande.models import catalog, loading
from sande.types import LanguageModel

QUESTIONS, ROUNDS = 60, 3
FLOAT32, BFLOAT16 = 1e-3, 0.2  # largest, and mean deviation of a log-likelihood
Scores = list[list[float]]


def lm_eval(lm: LanguageModel, questions: Sequence[Choices]) -> Scores:
    """Return lm-eval's log-likelihoods, by its method that scores requests of token ids."""
    harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=accuracy.Config().batch_size)
    requests = [(("", ""), list(q.context), list(choice)) for q in questions for choice in q.choices]
    found = iter(harness._loglikelihood_tokens(requests, disable_tqdm=True))
    return [[next(found)[0] for _ in question.choices] for question in questions]


def ours(lm: LanguageModel, questions: Sequence[Choices]) -> Scores:
    """Return our log-likelihoods, in the same order."""
    found = log_likelihoods(lm, questions, accuracy.Config().batch_size)
    return [[score for score, _ in choices] for choices in found]


def answers(scores: Scores) -> list[int]:
    """Return the most likely choice of each question."""
    return [choices.index(max(choices)) for choices in scores]


def deviations(one: Scores, other: Scores) -> list[float]:
    """Return the absolute differences of the log-likelihoods, choice by choice."""
    pairs = zip(one, other, strict=True)
    return [abs(mine - theirs) for pair in pairs for mine, theirs in zip(*pair, strict=True)]


def tokenised(lm: LanguageModel) -> list[Choices]:
    """Return built-in questions in the prompt text of the task `builtin-choice`."""
    questions = []
    for question in accuracy.spread(sets.choice(), QUESTIONS):
        prompt = f"Human: {question.question}\nAssistant:"
        context = lm.tokenizer(prompt)["input_ids"]
        texts = [f"{prompt} {choice}" for choice in question.choices]
        questions.append(Choices(context, tuple(ids[len(context) :] for ids in lm.tokenizer(texts)["input_ids"])))
    return questions


def main() -> None:
    """Compare in float32, then time in the type of `sande.compute`."""
    with tempfile.TemporaryDirectory() as folder:
        lm = loading.load(catalog.EMBEDDED, Path(folder))
    questions = tokenised(lm)
    theirs, mine = lm_eval(lm, questions), ours(lm, questions)
    worst = max(deviations(theirs, mine))
    if worst > FLOAT32 or answers(theirs) != answers(mine):
        raise SystemExit(f"log-likelihoods differ by {worst}, or an answer does")
    torch.nn.Module.to(lm.model, compute.dtype())
    for side in (lm_eval, ours):
        side(lm, questions[:2])  # libraries choose their kernels
    seconds = [0.0, 0.0]
    for _ in range(ROUNDS):  # in turn, so that a slowdown of the machine affects both
        begin = time.perf_counter()
        theirs = lm_eval(lm, questions)
        middle = time.perf_counter()
        mine = ours(lm, questions)
        seconds[0] += middle - begin
        seconds[1] += time.perf_counter() - middle
    mean = statistics.mean(deviations(theirs, mine))
    if mean > BFLOAT16:
        raise SystemExit(f"log-likelihoods differ by {mean} on average")
    alike = sum(one == other for one, other in zip(answers(theirs), answers(mine), strict=True))
    print(f"  lm-eval {seconds[0]:.1f} s, ours {seconds[1]:.1f} s; float32 deviates by {worst:.1g} at most,")
    print(f"  {compute.compute_type()} by {mean:.2g} on average, with {alike} of {QUESTIONS} answers alike")
    tell("multiple choice against lm-eval's loop", seconds[0] / seconds[1], 1)


if __name__ == "__main__":
    main()
