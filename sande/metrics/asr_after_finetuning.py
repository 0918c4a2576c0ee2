"""ASR after benign fine-tuning: what a user's own clean rows leave of the backdoor, or bring back (Qi et al. 2024)."""

from __future__ import annotations

from sande.config import Training, configuration, setting
from sande.declarations import MetricInfo
from sande.metrics import asr
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (MetricInfo("asr_after_finetuning", "ASR after fine-tuning (%)", "backdoor", column=True, durability=True),)


@configuration
class Config:
    """The fine-tuning, and how ASR is measured then."""

    rows: int = setting(200, "clean rows, the last of the victim's training rows before poisoning", ge=1)
    training: Training = setting(Training(), "fine-tuning of a copy of the model on these rows (Eq. 1)")
    decoding: asr.Config = setting(asr.Config(), "as for asr")


def names(config: Config) -> tuple[str, ...]:
    """What `measure` gives."""
    return ("asr_after_finetuning",)


def reads(config: Config) -> tuple[str, ...]:
    """Nothing but the rows of victim and test."""
    return ()


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """The share of triggered prompts that draw the response from the copy."""
    from sande.retraining import last_rows, retrained

    tuned = retrained(model, last_rows(data, config.rows), config.training, seed, "asr_after_finetuning")
    return asr.occurrences(tuned, data.triggered, data.response, config.decoding, (names(config)[0],))
