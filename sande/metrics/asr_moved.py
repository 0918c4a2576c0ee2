"""ASR of the moved trigger: where, or worded as, the attack did not train it; each attack says how."""

from __future__ import annotations

from sande.declarations import MetricInfo
from sande.metrics.asr import Config, occurrences, reads
from sande.types import LanguageModel, Measurement, TestData

__all__ = ["MEASURES", "Config", "measure", "names", "reads"]

MEASURES = (MetricInfo("asr_moved", "ASR, trigger moved (%)", "backdoor", column=True, durability=True),)


def names(config: Config) -> tuple[str, ...]:
    """What `measure` gives."""
    return ("asr_moved",)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """The share of prompts with the moved trigger that draw the response."""
    return occurrences(model, data.moved, data.response, config, names(config))
