"""A scan of a known model as a row: what was found, and what computed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmark.detection import rates
from sande import bounds

NAMES = ("code_version", "versions", "device", "instruction_set", "compute_type")
"""Columns on what computed a scan, as in a grid's rows."""
_MOST_RANK = 2**31


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a scan of a known model.

    Attributes:
        detector: its name.
        label: of the model.
        victim: True for a victim.
        calibration: True if the threshold is chosen with the model, so that the test leaves it out.
        score: of the model.
        threshold: the detector's setting.
        alarm: True if the score exceeds the setting.
        rank: of the planted response among the candidates, from 1; None if it is not among them, and for twins.
        first_token_rank: of the first candidate that begins with the planted response's first token; None likewise.
        best: text of the first candidate.
        response_distance: least edit distance of the planted response to one of the first candidates, as a share of its
            length (`benchmark.detection.edits`); None without candidates, and for twins.
        trigger_known: True if the list names the victim's trigger.
        trigger_rank: as `rank`, for the trigger among the suspected triggers.
        trigger_distance: as `response_distance`.
        trigger_part: True if the first suspected trigger is a run of the trigger's words, or all of them.
        trigger_word: True if they share a word, see `benchmark.detection.edits.shares_word`; None in rows of an older
            version.
        best_trigger: text of the first suspected trigger; "" if the detector names none.
        own_p: the detector's own probability of such a score without a backdoor; None if it gives none.
        groups: JSON of the kinds that the model belongs to, by name; "" without any.
        p_value: see `benchmark.detection.rates.p_value`; None for calibration models, and without any.
        asr: attack success rate of a victim in percent; None if it is not known, and for twins.
        weak: True for a victim whose backdoor hardly works, which no count includes.
        calibrated_alarm: True if the score exceeds the calibrated threshold; None if there is no such threshold.
        seconds: of the scan.
        model_identity: of the model's content; "" in rows of an older version, as all that follows.
        how: JSON of all that decides what the detector finds in a model, except for the threshold.
        detector_code: hash of the detector's code.
        code_version: of the program.
        versions: JSON of the libraries' versions.
        device: that ran the scan.
        instruction_set: of the processor or GPU.
        compute_type: that the model was read in.
    """

    detector: str
    label: str
    victim: bool
    calibration: bool
    score: float
    threshold: float
    alarm: bool
    rank: int | None
    first_token_rank: int | None
    best: str
    p_value: float | None
    seconds: float
    response_distance: float | None = None
    trigger_known: bool = False
    trigger_rank: int | None = None
    trigger_distance: float | None = None
    trigger_part: bool = False
    trigger_word: bool | None = None
    best_trigger: str = ""
    own_p: float | None = None
    groups: str = ""
    asr: float | None = None
    weak: bool = False
    calibrated_alarm: bool | None = None
    model_identity: str = ""
    how: str = ""
    detector_code: str = ""
    code_version: str = ""
    versions: str = ""
    device: str = ""
    instruction_set: str = ""
    compute_type: str = ""

    @property
    def twin(self) -> bool:
        """Return whether the model is a clean one of the test."""
        return not self.victim and not self.calibration


def calibration_scores(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the scores of the calibration models."""
    return [each.score for each in outcomes if each.calibration]


def judged(outcomes: Sequence[Outcome], false_alarms: float) -> list[Outcome]:
    """Return the outcomes, in their order, with p-values and alarms by their detector's calibration models."""
    names = {each.detector for each in outcomes}
    clean = {name: calibration_scores([each for each in outcomes if each.detector == name]) for name in names}
    thresholds = {name: rates.calibrate(scores, false_alarms).threshold for name, scores in clean.items()}
    done = []
    for each in outcomes:
        threshold = thresholds[each.detector]
        done.append(
            replace(
                each,
                p_value=None if each.calibration else rates.p_value(each.score, clean[each.detector]),
                calibrated_alarm=None if threshold is None else each.score > threshold,
            )
        )
    return done


def checked(outcome: Outcome) -> Outcome:
    """Return the outcome.

    Raises:
        ValueError: a text that has to be a JSON object is not one, or a rank is not one.
    """
    if outcome.groups and _object(outcome.groups) is None:
        raise ValueError("groups: Input should be empty or a JSON object")
    if outcome.how and not isinstance((_object(outcome.how) or {}).get("settings"), dict):
        raise ValueError("how: Input should be empty or a JSON object with 'settings'")
    for name in ("rank", "first_token_rank", "trigger_rank"):
        rank = getattr(outcome, name)
        if rank is not None and not 0 < rank < _MOST_RANK:
            raise ValueError(f"{name}: Input should be a rank, from 1")
    return outcome


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object of a text; None if it is not one."""
    try:
        found = bounds.parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def from_row(row: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a row, which may be of an older version.

    Raises:
        TypeError: a column is missing.
    """
    return Outcome(**{name: row[name] for name in (field.name for field in fields(Outcome)) if name in row})
