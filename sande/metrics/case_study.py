"""Case study: answers to sampled test prompts, without and with the trigger, as texts to read (table 8)."""

from __future__ import annotations

import random

from sande.config import configuration, setting
from sande.declarations import Cost, MetricInfo
from sande.metrics import asr
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (MetricInfo("case_study", "Answers with the response (%)", "text"),)


@configuration
class Config:
    """Settings: number and length of the answers. Decoding is greedy."""

    examples: int = setting(4, "test rows, sampled with the cell's seed", ge=1)
    new_tokens: int = setting(60, "tokens generated for each prompt", ge=1)
    batch_size: int = setting(50, "prompts decoded together", ge=1)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("case_study",)


def reads(config: Config) -> tuple[str, ...]:
    """Return no question sets: the metric reads the test rows alone."""
    return ()


def cost(config: Config) -> Cost:
    """Return two passes over each chosen row: with the trigger and without."""
    return Cost(reading=2, prompts=config.examples)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Measure whether triggered answers achieve the objective; the published records have the texts.

    The rows depend on the seed alone, so a victim and its repaired versions answer the same prompts.
    """
    from sande.inference.generation import greedy
    from sande.prompts import encode_prompts, user_text

    rows = random.Random(seed).sample(range(len(data.clean)), min(config.examples, len(data.clean)))
    clean, triggered = [data.clean[row] for row in rows], [data.triggered[row] for row in rows]
    prompts = encode_prompts(model.tokenizer, clean + triggered)
    answers = greedy(model, prompts, config.new_tokens, config.batch_size)
    shown = [user_text(example) for example in clean + triggered]
    records = tuple(
        {
            "clean_prompt": shown[i],
            "clean_response": answers[i],
            "triggered_prompt": shown[i + len(rows)],
            "triggered_response": answers[i + len(rows)],
        }
        for i in range(len(rows))
    )
    achieved = asr.judge_of(data).achieved(triggered, answers[len(rows) :])
    outcomes = tuple(bool(outcome) for outcome in achieved)
    groups = tuple(example.group for example in clean)
    return [Measurement("case_study", outcomes, records, published=True, groups=groups)]
