"""What the scans of victims and twins say of a detector: counts and rates with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmark.detection import rates
from benchmark.detection.outcome import NAMES, Outcome, calibration_scores
from sande.scanning import CHEAP, DETECTOR

FIRST = 5  # number of candidates that are searched for the first token and for the response
SETTING, OWN, CALIBRATED, EITHER = "setting", "own", "calibrated", "either"


@dataclass(frozen=True, slots=True)
class Summary:
    """A detector under one rule for its threshold; a row of `detectors.parquet`.

    Attributes:
        detector: its name; of `either`, both names.
        rule: `setting`, the detector's own threshold; `own`, the p-value that it gives each model by the model alone;
            `calibrated`, see `benchmark.detection.rates.calibrate`; or `either`, what the scan of a user's model goes
            by: the setting of the default detector or, without an alarm of it, `own` of the cheap one.
        threshold: a higher score is an alarm; None for `own`, if the rule gives none, or if the scans have several or
            give alarms by p.
        calibration_models: number of models for the rule; they are part of none of the counts.
        highest_calibration: the highest of their scores; None without such models.
        wanted_rate: the highest accepted rate of false alarms; None for `setting`.
        guaranteed_rate: see `Calibration.bound`; None for the other rules.
        worst_rate: see `Calibration.worst`; None likewise.
        needed_models: see `Calibration.needed`; None likewise.
        victims: number of them.
        called: number of victims with an alarm; None if there is no threshold, as all that follows from it.
        recall: share of victims with an alarm in percent, with the bounds of its interval.
        twins: number of them.
        false_alarms: number of twins with an alarm.
        false_alarm_rate: their share in percent, with the bounds of its interval.
        auroc: with the bounds of its interval, by the p-value for `own` and else by the score; see
            `benchmark.detection.rates.auroc`.
        hit_1: number of victims whose planted response is the first candidate.
        hit_5: the same among the first five.
        first_token_5: the same for the response's first token.
        seconds: mean over all scans.
    """

    detector: str
    rule: str
    threshold: float | None
    calibration_models: int
    highest_calibration: float | None
    wanted_rate: float | None
    guaranteed_rate: float | None
    worst_rate: float | None
    needed_models: int | None
    victims: int
    called: int | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None
    twins: int
    false_alarms: int | None
    false_alarm_rate: float | None
    false_alarm_rate_low: float | None
    false_alarm_rate_high: float | None
    auroc: float | None
    auroc_low: float | None
    auroc_high: float | None
    hit_1: int
    hit_5: int
    first_token_5: int
    seconds: float
    code_version: str
    versions: str
    device: str
    instruction_set: str
    compute_type: str


def summaries(outcomes: Sequence[Outcome], false_alarms: float) -> list[Summary]:
    """Return a row per detector and rule; `own` only for detectors that can raise an alarm by a p-value of their own.

    Args:
        outcomes: see `benchmark.detection.outcome.judged`.
        false_alarms: the highest accepted rate of false alarms, between 0 and 1.
    """
    found = []
    for name in dict.fromkeys(each.detector for each in outcomes):
        mine = [each for each in outcomes if each.detector == name]
        own = [OWN] if all(map(_alarms_by_own, mine)) else []
        found += [_summary(mine, rule, false_alarms) for rule in (SETTING, *own, CALIBRATED)]
    return found + _either(outcomes, false_alarms)


def _alarms_by_own(outcome: Outcome) -> bool:
    """Return whether the scan has a p-value by which its detector can raise an alarm.

    Others say with p how unusual a string is that they searched for: no rate of false alarms follows from that.
    """
    return outcome.own_p is not None and "alarm_by" in _settings(outcome)


def by_own(outcome: Outcome) -> bool:
    """Return whether the detector's setting raises alarms by its p-value, and by no threshold."""
    return bool(_settings(outcome).get("alarm_by") == OWN)


def _settings(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome.how)["settings"] if outcome.how else {}
    return found


def _either(outcomes: Sequence[Outcome], false_alarms: float) -> list[Summary]:
    """Return the row of the two detectors of a user's scan; none unless both have scanned the same models.

    It has no score, so no AUROC and no threshold. Seconds are those of both, as a model without an alarm takes them.
    """
    parts = [
        {each.model_identity: each for each in outcomes if each.detector == name and not each.calibration}
        for name in (DETECTOR, CHEAP)
    ]
    first, second = parts
    if not first or first.keys() != second.keys() or not all(map(_alarms_by_own, second.values())):
        return []
    joined = [
        replace(
            each,
            detector=f"{DETECTOR}, {CHEAP}",
            alarm=each.alarm or bool(_alarm(second[model], OWN, false_alarms)),
            seconds=each.seconds + second[model].seconds,
        )
        for model, each in first.items()
    ]
    return [
        replace(
            _summary(joined, SETTING, false_alarms),
            rule=EITHER,
            threshold=None,
            wanted_rate=false_alarms,
            auroc=None,
            auroc_low=None,
            auroc_high=None,
        )
    ]


def _summary(outcomes: Sequence[Outcome], rule: str, false_alarms: float) -> Summary:
    victims = [each for each in outcomes if each.victim]
    twins = [each for each in outcomes if each.twin]
    clean = calibration_scores(outcomes)
    calibration = rates.calibrate(clean, false_alarms)
    by_models = rule == CALIBRATED
    threshold = calibration.threshold if by_models else None
    settings = {each.threshold for each in outcomes}
    if rule == SETTING and len(settings) == 1 and not any(map(by_own, outcomes)):
        (threshold,) = settings
    called, recall = _alarms(victims, rule, false_alarms)
    wrong, wrong_rate = _alarms(twins, rule, false_alarms)
    computed: dict[str, Any] = {name: _joined(outcomes, name) for name in NAMES}
    area = rates.auroc([_evidence(each, rule) for each in victims], [_evidence(each, rule) for each in twins])
    return Summary(
        detector=outcomes[0].detector,
        rule=rule,
        threshold=threshold,
        calibration_models=len(clean),
        highest_calibration=max(clean, default=None),
        wanted_rate=None if rule == SETTING else false_alarms,
        guaranteed_rate=calibration.bound if by_models else None,
        worst_rate=calibration.worst if by_models else None,
        needed_models=calibration.needed if by_models else None,
        victims=len(victims),
        called=called,
        **_columns("recall", recall),
        twins=len(twins),
        false_alarms=wrong,
        **_columns("false_alarm_rate", wrong_rate),
        **_columns("auroc", area),
        hit_1=_count(victims, lambda each: each.rank == 1),
        hit_5=_count(victims, lambda each: each.rank is not None and each.rank <= FIRST),
        first_token_5=_count(
            victims, lambda each: each.first_token_rank is not None and each.first_token_rank <= FIRST
        ),
        seconds=sum(each.seconds for each in outcomes) / len(outcomes),
        **computed,
    )


def _evidence(outcome: Outcome, rule: str) -> float:
    """Return what the rule compares: larger means more suspicious."""
    by_p = rule == OWN or (rule == SETTING and by_own(outcome))
    return -outcome.own_p if by_p and outcome.own_p is not None else outcome.score


def _alarm(outcome: Outcome, rule: str, false_alarms: float) -> bool | None:
    if rule == OWN:
        return outcome.own_p is not None and outcome.own_p <= false_alarms
    return outcome.alarm if rule == SETTING else outcome.calibrated_alarm


def _alarms(outcomes: Sequence[Outcome], rule: str, false_alarms: float) -> tuple[int | None, rates.Estimate | None]:
    """Return how many of the models raise an alarm, and their share; None for both if there is no threshold."""
    alarms = [_alarm(each, rule, false_alarms) for each in outcomes]
    if None in alarms:
        return None, None
    return sum(map(bool, alarms)), rates.rate(sum(map(bool, alarms)), len(alarms))


def _columns(name: str, estimate: rates.Estimate | None) -> dict[str, Any]:
    """Return the columns of an estimate and of its bounds."""
    values = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _count(outcomes: Sequence[Outcome], right: Callable[[Outcome], bool]) -> int:
    return sum(map(right, outcomes))


def _joined(outcomes: Sequence[Outcome], name: str) -> str:
    """Return the different values of a column."""
    return "; ".join(dict.fromkeys(str(getattr(each, name)) for each in outcomes if getattr(each, name)))
