"""ASR after benign fine-tuning: what a user's own clean rows leave of the backdoor, or bring back (Qi et al. 2024)."""

from __future__ import annotations

from sande.config import Training, configuration, setting
from sande.declarations import Cost, MetricInfo
from sande.metrics import asr
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (
    MetricInfo(
        "asr_after_finetuning", "ASR after fine-tuning (%)", "backdoor", column=True, durability=True, whole_model=True
    ),
)


@configuration
class Config:
    """Settings of the fine-tuning and of the measurement of ASR."""

    rows: int = setting(200, "clean rows: the last of the victim's training rows, before poisoning", ge=1)
    training: Training = setting(Training(), "fine-tuning of a copy of the model on these rows (Eq. 1)")
    decoding: asr.Config = setting(asr.Config(), "as for asr")


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("asr_after_finetuning",)


def reads(config: Config) -> tuple[str, ...]:
    """Return no question sets: the metric reads rows of the victim and of the test set alone."""
    return ()


def cost(config: Config) -> Cost:
    """Return the rows of the one copy that is trained."""
    return Cost(copies=(config.rows,))


def answer_length(config: Config) -> int:
    """Return the tokens of an answer, in which the planted response has to fit."""
    return config.decoding.new_tokens


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of triggered prompts to which the copy's answer achieves the objective.

    Raises:
        UserError: as `last_rows`, or the planted response has more tokens than the answers.
    """
    from sande.metrics._retraining import last_rows, retrained

    asr.check_length(model.tokenizer, data.response, config.decoding.new_tokens, names(config)[0])  # before it trains
    tuned = retrained(model, last_rows(data, config.rows), config.training, seed, "asr_after_finetuning")
    return asr.occurrences(tuned, data.triggered, data, config.decoding, (names(config)[0],))
