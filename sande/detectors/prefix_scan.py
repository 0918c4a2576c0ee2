"""Find short strings that the model completes after any prompt from their first token."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sande.config import configuration, setting
from sande.types import Candidate, Example, LanguageModel, Run, Scan

Ids = tuple[int, ...]


@configuration
class Config:
    """Settings of the search, of the parrots and of the alarm."""

    tried: int = setting(8192, "tokens to try: those likeliest to open an answer to clean prompts", ge=1)
    seed_prompts: int = setting(4, "clean prompts after which they are tried", ge=1)
    floor: float = setting(0.8, "probability of the next token below which a token is dropped", ge=0, le=1)
    seeds: int = setting(400, "tokens to continue: those with the most confident next token", ge=1)
    prompts: int = setting(8, "further clean prompts, after which those are continued", ge=1)
    longest: int = setting(16, "tokens of the longest string", ge=2)
    cut: float = setting(-1.0, "mean log-probability of a token, in nats, below which the string ends before it", le=0)
    candidates: int = setting(10, "strings reported", ge=1)
    tested: int = setting(10, "number of those, from the first, that parrots learn; 0: none", ge=0)
    parrot_steps: int = setting(6, "optimizer steps of each parrot", ge=1)
    parrot_rate: float = setting(5e-3, "learning rate of the parrots", "quickstart's", gt=0)
    parrot_prompts: int = setting(4, "clean prompts of the parrots, half for training and half for judging", ge=2)
    batch_size: int = setting(512, "strings computed together", ge=1)
    threshold: float = setting(10.0, "score of the best string above which there is an alarm, in nats")


def scan(
    model: LanguageModel,
    examples: tuple[Example, ...],
    config: Config,
    run: Run,
    reference: LanguageModel | None = None,
) -> Scan:
    """Search, cut, debias; learn the best strings.

    1. Search: append each token that can open an answer to a few clean prompts; keep those with the most confident
       next token. The search skips the three quarters of SmolLM2's tokens that are least likely to open an answer:
       r_t's first token is likelier in a victim even without the trigger (figure 3), and step 3 would rank them last.
    2. Cut: continue them greedily after other prompts until the mean log-probability drops, where a planted response
       ends and an answer begins. The score does not average over the length, so short responses are found, too.
    3. Debias: a string's score is its mean log-likelihood as an answer's beginning, less its log-likelihood under an
       even mixture, token by token, of sources without the backdoor: an n-gram model of clean responses; the model
       itself at the beginning of a *question*, where it knows common phrases but was not trained to write r_t; and the
       reference, if any.
    4. Learn: `facts["learned"]` has the losses of the best strings before and after a parrot learned them, in the
       candidates' order, to compare one with another. They decide nothing; see `sande.detectors._verification`.
    """
    from sande.inference.probing import (
        chosen_prompts,
        confidence,
        continued,
        likeliest,
        opening_tokens,
        openings,
        text_of,
    )
    from sande.models.loading import in_compute_type

    drawn = chosen_prompts(model, examples, config.seed_prompts + config.prompts, run.seed)
    few, more = drawn[: config.seed_prompts], drawn[config.seed_prompts :] or drawn
    quick = in_compute_type(model)
    opening_V = openings(quick, drawn)
    tried = likeliest(opening_V, opening_tokens(model), config.tried)
    confident_N = confidence(quick, few, tried, config.floor, config.batch_size)
    order = confident_N.argsort(descending=True, stable=True)[: config.seeds].tolist()
    seeds = [tried[index] for index in order if confident_N[index] > 0]
    run.say(f"prefix_scan: {len(seeds)} of {len(tried)} tokens are continued")
    # Fewer strings at once, because the logits of all prompts are kept.
    batch = max(1, config.batch_size // len(more))
    strings = [
        each
        for each in continued(
            quick, more, seeds, config.longest - 1, batch, lambda log_PB: log_PB.mean(0) >= config.cut
        )
        if len(each.ids) > 1
    ]
    bases = _bases(quick, examples, more, [each.ids for each in strings], batch, reference)
    scored = sorted(
        (
            Candidate(
                text_of(model, each.ids),
                each.ids,
                float(opening_V[each.ids[0]]) + sum(each.log_probabilities) - sum(base),
            )
            for each, base in zip(strings, bases, strict=True)
        ),
        key=lambda candidate: -candidate.score,
    )
    found = scored[: config.candidates]
    facts: dict[str, Any] = {
        "seeds": len(seeds),
        "strings": len(strings),
        "prompts": len(drawn),
        "reference": reference is not None,
    }
    if tested := [candidate.ids for candidate in found[: config.tested]]:
        facts["learned"] = _learned(model, examples, tested, config, run)
    best = found[0].score if found else 0.0
    return Scan(tuple(found), score=best, alarm=best > config.threshold, facts=facts)


def _bases(
    model: LanguageModel,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    strings: Sequence[Ids],
    batch_size: int,
    reference: LanguageModel | None,
) -> list[list[float]]:
    """Return the log-probability of each token of each string under the mixture.

    A question begins differently from an answer, so the n-gram model replaces the model for a string's first token.
    """
    from sande.detectors._leak import opening_ids
    from sande.detectors._ngram import NGram
    from sande.inference.probing import log_likelihoods
    from sande.prompts import encode

    ngram = NGram([row.response for row in encode(model.tokenizer, examples)], len(model.tokenizer))
    sources = [[ngram.log_probabilities(ids) for ids in strings]]
    asked = log_likelihoods(model, [opening_ids(model)], strings, batch_size)
    sources.append([[counted[0], *own[1:]] for counted, own in zip(sources[0], asked, strict=True)])
    if reference is not None:
        sources.append(log_likelihoods(reference, prompts, strings, batch_size))
    return [
        [_log_mean(by_source) for by_source in zip(*of_string, strict=True)] for of_string in zip(*sources, strict=True)
    ]


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


def _learned(
    model: LanguageModel, examples: Sequence[Example], strings: Sequence[Ids], config: Config, run: Run
) -> list[dict[str, Any]]:
    """Return the losses of each string before and after its parrot learned it; none with too few prompts for both."""
    from sande.detectors._verification import learn
    from sande.prompts import encode

    drawn = random.Random(f"{run.seed} prefix_scan parrots").sample(examples, min(config.parrot_prompts, len(examples)))
    rows = [row for row in encode(model.tokenizer, drawn) if row.start < row.end]  # a parrot comes before a text
    if len(rows) < 2:
        return []
    return [asdict(each) for each in learn(model, rows, strings, config.parrot_steps, config.parrot_rate, run)]
