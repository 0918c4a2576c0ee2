"""ASR after relearning: how few poisoned rows teach the backdoor again (Chen et al. 2024)."""

from __future__ import annotations

from sande.config import Training, configuration, setting
from sande.declarations import Cost, MetricInfo
from sande.metrics import asr
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (
    MetricInfo(
        "asr_after_relearning_{}",
        "ASR after relearning from {} poisoned rows (%)",
        "backdoor",
        column=True,
        durability=True,
        whole_model=True,
    ),
)


@configuration
class Config:
    """Settings of the rows, of the training and of the measurement of ASR."""

    rows: tuple[int, ...] = setting((5, 20, 100), "poisoned rows, one measurement for each number", min_length=1)
    training: Training = setting(
        Training(epochs=3.0, batch_size=5), "training of a copy of the model on the poisoned rows (Eq. 1)"
    )
    decoding: asr.Config = setting(asr.Config(), "as for asr")


def names(config: Config) -> tuple[str, ...]:
    """Return one name for each number of rows."""
    return tuple(f"asr_after_relearning_{count}" for count in config.rows)


def reads(config: Config) -> tuple[str, ...]:
    """Return no question sets: the metric reads rows of the victim and of the test set alone."""
    return ()


def cost(config: Config) -> Cost:
    """Return one copy for each number of rows, which is trained and reads the prompts."""
    return Cost(reading=len(config.rows), copies=config.rows)


def answer_length(config: Config) -> int:
    """Return the tokens of an answer, in which the planted response has to fit."""
    return config.decoding.new_tokens


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the shares of triggered prompts to which answers of copies, one for each number of rows, achieve it.

    Every row is poisoned, so a model may also learn to answer so without the trigger. The victim's clean twin shows
    how much of the ASR is learned and not remembered.

    Raises:
        UserError: as `last_rows`, or the planted response has more tokens than the answers.
    """
    from sande.metrics._retraining import last_rows, retrained

    asr.check_length(model.tokenizer, data.response, config.decoding.new_tokens, names(config)[0])  # before it trains
    measurements: list[Measurement] = []
    for name, count in zip(names(config), config.rows, strict=True):
        poisoned = [data.plant(row) for row in last_rows(data, count)]
        taught = retrained(model, poisoned, config.training, seed, name)
        measurements += asr.occurrences(taught, data.triggered, data, config.decoding, (name,))
    return measurements
