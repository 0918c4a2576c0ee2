"""ASR of the moved trigger: in a place or wording that the attack did not train; each attack defines it."""

from __future__ import annotations

from sande.declarations import MetricInfo
from sande.metrics.asr import Config, answer_length, occurrences, reads
from sande.types import LanguageModel, Measurement, TestData

__all__ = ["MEASURES", "Config", "answer_length", "measure", "names", "reads"]

MEASURES = (MetricInfo("asr_moved", "ASR, trigger moved (%)", "backdoor", column=True, durability=True),)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("asr_moved",)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of prompts with the moved trigger that are whose answer achieves the objective."""
    return occurrences(model, data.moved, data, config, names(config))
