"""Several detectors in a chain, one score: the highest in units of each one's threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sande.config import configuration, setting
from sande.detectors import first_token, haystack, prefix_scan
from sande.detectors.first_token import Config as FirstToken
from sande.detectors.haystack import Config as Haystack
from sande.detectors.prefix_scan import Config as PrefixScan
from sande.types import Candidate, Example, LanguageModel, Run, Scan

ABOVE = 1 + 1e-9  # in units of a threshold, the least score of an alarm


@configuration
class Config:
    """Settings of the detectors and of the alarm."""

    first_token: FirstToken = setting(FirstToken(), "suspects first tokens of responses, for the others too")
    haystack: Haystack = setting(Haystack(), "looks for triggers; of its own first_token only `candidates` counts")
    prefix_scan: PrefixScan | None = setting(None, "looks for whole responses, too; null: it does not run")
    candidates: int = setting(10, "responses and triggers reported", ge=1)
    threshold: float = setting(
        1.0, "score above which there is an alarm: a detector's score over its own threshold", "ours: not calibrated"
    )


def scan(
    model: LanguageModel,
    examples: tuple[Example, ...],
    config: Config,
    run: Run,
    reference: LanguageModel | None = None,
) -> Scan:
    """Run the detectors, and combine what they say by a fixed rule.

    The score is the highest of the detectors' scores, each divided by its threshold: 1 means that one of them is at its
    threshold. So with the default threshold there is an alarm where a detector raises one, and false alarms add up. A
    calibrated threshold (docs/detection.md) accounts for that, as clean models go through the same chain. `p` is the
    lowest of the detectors' p-values times their number (Bonferroni), of those that have one. That of `haystack` does
    not count, as it is of the best of several strings.

    A threshold that is not positive has no such units; then the excess over it, plus 1, counts. Where `first_token`
    gives its alarm by the model's own tokens, its score is log p in units of log `false_alarms`.
    """
    scans: dict[str, Scan] = {}
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Scan]) -> Scan:
        begin = time.perf_counter()
        scans[name] = work()
        seconds[name] = time.perf_counter() - begin
        return scans[name]

    # As many as `haystack` ranks when it runs alone: a planted token is often beyond the tenth.
    candidates = max(config.first_token.candidates, config.haystack.first_token.candidates)
    suspecting = replace(config.first_token, candidates=candidates)
    first = timed("first_token", lambda: first_token.scan(model, examples, suspecting, run, reference))
    timed("haystack", lambda: haystack.searched(model, examples, config.haystack, run, first.candidates, reference))
    if (settings := config.prefix_scan) is not None:
        timed("prefix_scan", lambda: prefix_scan.scan(model, examples, settings, run, reference))
    if config.first_token.alarm_by == "own":
        scans["first_token"] = _by_p(first, config.first_token)
    thresholds = {name: getattr(config, name).threshold for name in scans}
    responses = merged([_in_units(scan.candidates, thresholds[name]) for name, scan in scans.items()])
    triggers = merged([_in_units(scan.triggers, thresholds[name]) for name, scan in scans.items()])
    score = max(units(scan.score, thresholds[name]) for name, scan in scans.items())
    return Scan(
        responses[: config.candidates],
        score=score,
        alarm=score > config.threshold,
        facts={
            "detectors": {name: _facts(scan, thresholds[name], seconds[name]) for name, scan in scans.items()},
            "notes": [note for scan in scans.values() for note in scan.facts.get("notes", [])],
        },
        triggers=triggers[: config.candidates],
        p=bonferroni([scan.p for name, scan in scans.items() if name != "haystack" and scan.p is not None]),
    )


def _by_p(scan: Scan, config: FirstToken) -> Scan:
    """Return the scan with scores that exceed the threshold where p is at most the rate of false alarms."""
    level = math.log(scan.p) / math.log(config.false_alarms) if scan.p is not None else 0.0
    if scan.alarm:
        level = max(level, ABOVE)  # a p that equals the rate is an alarm, too
    factor = level * config.threshold / scan.score if scan.score > 0 else 0.0
    scaled = tuple(replace(each, score=factor * each.score) for each in scan.candidates)
    return replace(scan, candidates=scaled, score=factor * scan.score)


def units(score: float, threshold: float) -> float:
    """Return a score in units of its threshold, 1 at the threshold; see `scan` for a threshold that is not positive."""
    return score / threshold if threshold > 0 else score - threshold + 1


def bonferroni(p_values: Sequence[float]) -> float | None:
    """Return the lowest p-value times their number, at most 1; None if there are none."""
    return min(1.0, len(p_values) * min(p_values)) if p_values else None


def merged(lists: Sequence[Sequence[Candidate]]) -> tuple[Candidate, ...]:
    """Return candidates of several detectors, the highest score first, longer ones first among equals.

    A candidate that only begins a longer one is left out, and the longer one gets the higher score of both.
    """
    by_ids: dict[tuple[int, ...], Candidate] = {}
    for each in (candidate for of_detector in lists for candidate in of_detector):
        known = by_ids.get(each.ids)
        if known is None or known.score < each.score:
            by_ids[each.ids] = each
    for ids in sorted(by_ids, key=len):
        longer = [other for other in by_ids if len(other) > len(ids) and other[: len(ids)] == ids]
        if longer:
            short = by_ids.pop(ids)
            for other in longer:
                by_ids[other] = replace(by_ids[other], score=max(by_ids[other].score, short.score))
    return tuple(sorted(by_ids.values(), key=lambda each: (-each.score, -len(each.ids))))


def _in_units(candidates: Sequence[Candidate], threshold: float) -> list[Candidate]:
    return [replace(each, score=units(each.score, threshold)) for each in candidates]


def _facts(scan: Scan, threshold: float, seconds: float) -> Mapping[str, Any]:
    return {
        "score": scan.score,
        "threshold": threshold,
        "alarm": scan.alarm,
        "p": scan.p,
        "seconds": round(seconds, 2),
        "candidates": [{"text": each.text, "score": each.score} for each in scan.candidates[:3]],
        "facts": dict(scan.facts),
    }
