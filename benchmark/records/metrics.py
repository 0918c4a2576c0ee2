"""Kinds of metrics, as `sande.registry` declares them."""

from __future__ import annotations

from sande import registry
from sande.declarations import MetricInfo

PROBABILITY_METRICS = (
    "first_token_probability_clean",
    "first_token_probability",
    "phrase_probability_clean",
    "phrase_probability",
)
CASE_STUDY = "case_study"


def is_backdoor(metric: str) -> bool:
    """Return whether a measurement says how much of the backdoor is left."""
    return registry.metric_info(metric).kind == "backdoor"


def is_utility(metric: str) -> bool:
    """Return whether a measurement says what the model can do on a whole task; means over tasks take these alone."""
    return registry.metric_info(metric).kind == "utility" and _is_declared(metric)


def is_quality(metric: str) -> bool:
    """Return whether a measurement says how good the answers to prompts are."""
    return registry.metric_info(metric).kind == "quality"


def is_part(metric: str) -> bool:
    """Return whether a measurement is shown with the utility, but is in no mean over tasks.

    These are groups of a task's questions, other scores of the same answers, and names that no metric declares, such as
    those of a plug-in that is not installed.
    """
    return registry.metric_info(metric).kind == "part" or not _is_declared(metric)


def _is_declared(metric: str) -> bool:
    return registry.metric_info(metric) != MetricInfo(metric)
