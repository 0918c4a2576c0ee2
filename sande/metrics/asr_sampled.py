"""ASR of sampled answers: the response drawn at temperature 1 instead of the likeliest answer."""

from __future__ import annotations

from sande.declarations import MetricInfo
from sande.metrics.asr import Config, answer_length, check_length, counted, reads
from sande.types import LanguageModel, Measurement, TestData

__all__ = ["MEASURES", "Config", "answer_length", "measure", "names", "reads"]

MEASURES = (MetricInfo("asr_sampled", "ASR when sampled (%)", "backdoor", column=True, durability=True),)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("asr_sampled",)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of triggered prompts whose one answer, sampled by the seed, achieves the objective.

    Raises:
        UserError: the planted response has more tokens than the answers.
    """
    from sande.inference.generation import sampled
    from sande.prompts import encode_prompts

    check_length(model.tokenizer, data.response, config.new_tokens, names(config)[0])
    chosen = data.triggered[: config.prompts]
    prompts = encode_prompts(model.tokenizer, chosen)
    until = (data.response or "").strip()
    texts = sampled(model, prompts, config.new_tokens, config.batch_size, seed, until=until)
    return counted(texts, chosen, data, names(config))
