"""ASR of sampled answers: the response drawn at temperature 1 instead of the likeliest answer."""

from __future__ import annotations

from sande.declarations import MetricInfo
from sande.metrics.asr import Config, counted, reads
from sande.types import LanguageModel, Measurement, TestData

__all__ = ["MEASURES", "Config", "measure", "names", "reads"]

MEASURES = (MetricInfo("asr_sampled", "ASR when sampled (%)", "backdoor", column=True, durability=True),)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("asr_sampled",)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of triggered prompts whose one answer, sampled by the seed, achieves the objective."""
    from sande.inference.generation import sampled
    from sande.prompts import encode_prompts

    chosen = data.triggered[: config.prompts]
    prompts = encode_prompts(model.tokenizer, chosen)
    until = (data.response or "").strip()
    texts = sampled(model, prompts, config.new_tokens, config.batch_size, seed, until=until)
    return counted(texts, chosen, data, names(config))
