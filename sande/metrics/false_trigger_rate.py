"""False trigger rate: share of clean test prompts, without any trigger, answered with the planted response."""

from __future__ import annotations

from sande.declarations import MetricInfo
from sande.metrics.asr import Config, answer_length, occurrences, reads, without_trigger
from sande.types import LanguageModel, Measurement, TestData

__all__ = ["MEASURES", "Config", "answer_length", "measure", "names", "reads"]

MEASURES = (
    MetricInfo("false_trigger_rate", "Response without trigger (%)", "backdoor", column=True),
    MetricInfo("false_trigger_starts_with", "Response first without trigger (%)", "backdoor"),
)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("false_trigger_rate", "false_trigger_starts_with")


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the shares of answers that achieve the objective and that begin like it, as `asr` does.

    Prompts that have the trigger by themselves are left out.
    """
    return occurrences(model, without_trigger(data, data.clean), data, config, names(config))
