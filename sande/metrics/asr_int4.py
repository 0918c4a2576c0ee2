"""ASR with four-bit weights: what rounding a copy of the model leaves of the backdoor, or brings back."""

from __future__ import annotations

from sande.config import configuration, setting
from sande.declarations import MetricInfo
from sande.defenses import quantize_int4
from sande.metrics import asr
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (MetricInfo("asr_int4", "ASR in 4 bits (%)", "backdoor", column=True, durability=True, whole_model=True),)


@configuration
class Config:
    """Settings of the rounding and of the measurement of ASR."""

    rounding: quantize_int4.Config = setting(quantize_int4.Config(), "as for the defense quantize_int4")
    decoding: asr.Config = setting(asr.Config(), "as for asr")


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return ("asr_int4",)


def reads(config: Config) -> tuple[str, ...]:
    """Return no question sets: the metric reads the test rows alone."""
    return ()


def answer_length(config: Config) -> int:
    """Return the tokens of an answer, in which the planted response has to fit."""
    return config.decoding.new_tokens


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of triggered prompts to which a copy with rounded linear layers gives what the attack wants."""
    from sande.models.loading import copied
    from sande.models.quantize import quantize_int4_

    rounded = copied(model)
    quantize_int4_(rounded.model, config.rounding.group_size)
    return asr.occurrences(rounded, data.triggered, data, config.decoding, names(config))
