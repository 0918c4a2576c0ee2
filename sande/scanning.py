"""Scan a model for its owner: the same clean rows, prompt formats and score in `sande-bench scan`, `clean` and the API.

The chosen detector reads the model in its own prompt format. Without an alarm the cheap detector looks, too: in that
format, unless the chosen one has done what it does, and in the others that the model may have been trained in, until
one gives an alarm. These are several tests of one model, which share the rate of false alarms (Bonferroni): with n
formats an alarm of the cheap detector needs a p-value of at most `false_alarms` / n. An alarm of the chosen detector by
another rule, such as a published threshold, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sande import formats, registry
from sande.data import datasets
from sande.declarations import Calibration
from sande.errors import UserError
from sande.models import asking
from sande.prompts import encode
from sande.types import Example, LanguageModel, Run, Scan

if TYPE_CHECKING:
    from sande.detectors.first_token import Config as FirstToken
    from sande.formats import PromptFormat

DATA, ROWS = "builtin-short", 400
"""Clean rows of a scan: the last ones, since victims of this suite are trained on the first 90 %."""
LONGEST = 1024  # tokens of a row, so that rows computed together fit in memory
ROOM = 32  # positions that a row leaves for what detectors add: strings around the prompt, and answers
DETECTOR = "haystack"
CHEAP = "first_token"
CHAIN = "all"  # of which the cheap one is a part
RULE = "The formats share one rate of false alarms, so an alarm by p-value needs at most {level:.2g}."
FACTS = ("prompt_format", "formats_tried", "detector", "calibrated")
"""Facts that `scan` adds to those of a detector."""


def settings(detector: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a detector's settings for the model of a user.

    Its threshold was chosen on models of one kind, so `first_token` gives its alarm by the model's own p-value, in a
    chain, too.
    """
    own = {"alarm_by": "own"}
    if detector == CHAIN:
        part = given.get(CHEAP, {})
        return {**given, CHEAP: {**own, **part} if isinstance(part, Mapping) else part}
    return {**own, **given} if detector == CHEAP else dict(given)


def examples(data: str = DATA, rows: int = ROWS) -> tuple[Example, ...]:
    """Return the last rows of a data set."""
    return tuple(datasets.examples(data)[-rows:])


def scan(
    lm: LanguageModel,
    detector: str,
    config: Any,
    rows: tuple[Example, ...],
    run: Run,
    reference: LanguageModel | None = None,
    *,
    data: str = DATA,
    anywhere: bool = True,
    cheap: FirstToken | None = None,
) -> Scan:
    """Return the scan of a model in the format with an alarm, or else in its own; that format is then attached.

    `facts` gets `prompt_format`, `formats_tried` (a record for each scan, the own format first), `detector` (the one
    of this result) and `calibrated`, a sentence on how far the model is from those that set the threshold. `notes` has
    sentences on the rows, if there are any: those that are too long are left out, and the detector may add others.

    Args:
        lm: the model, with the prompt format in which it is asked first.
        detector: its name.
        config: its settings.
        rows: clean rows.
        run: seed, progress and scratch folder.
        reference: the clean model, if the user has it.
        data: name of the data set of the rows.
        anywhere: whether the cheap detector looks, too, in this format and in others.
        cheap: its settings if another detector is chosen; None: the defaults for the model of a user.

    Raises:
        UserError: a score is NaN or infinite, all rows are too long, or the settings allow no alarm.
    """
    own, more = formats.of(lm.tokenizer), asking.others(lm.tokenizer) if anywhere else []
    if detector == CHEAP:
        cheap = config
    cheap = cheap or registry.config("detectors", CHEAP, settings(CHEAP, {}))
    level = cheap.false_alarms / (1 + len(more))
    cheap = replace(cheap, false_alarms=level)
    if detector == CHAIN:
        config = replace(config, first_token=replace(config.first_token, false_alarms=level))
        if config.first_token.alarm_by == "own":
            _check_alarm(config.first_token, 1 + len(more))
    if (anywhere or detector == CHEAP) and (more or cheap.alarm_by == "own"):
        _check_alarm(cheap, 1 + len(more))
    short, notes = fitting(lm, rows, run.say)
    if not short:
        raise UserError(f"scan: {notes[0].partition(';')[0]}; choose shorter rows")
    found: Scan = registry.entry("detectors", detector).scan(
        lm, short, cheap if detector == CHEAP else config, run, *_given(reference)
    )
    notes += found.facts.get("notes", [])
    tried, name = [_record(own, detector, found, level)], detector
    if anywhere and detector not in (CHEAP, CHAIN):
        more = [own, *more]
    for each in [] if found.alarm else more:
        run.say(f"no alarm; looking with {CHEAP} in the format {each.name}")
        with asking.asked_in(lm.tokenizer, each):
            short, more_notes = fitting(lm, rows, run.say)
            notes += more_notes
            if not short:
                continue
            other = registry.entry("detectors", CHEAP).scan(lm, short, cheap, run, *_given(reference, each))
        other = replace(other, alarm=other.alarm and other.p is not None and other.p <= level)
        tried.append(_record(each, CHEAP, other, level))
        if other.alarm:
            found, name = other, CHEAP
            formats.attach(lm.tokenizer, each)
            break
    facts = {
        **found.facts,
        "prompt_format": formats.of(lm.tokenizer).name,
        "formats_tried": tried,
        "detector": name,
        "calibrated": calibrated(lm, name, data),
        **({"notes": list(dict.fromkeys(notes))} if notes else {}),
    }
    return replace(found, facts=facts)


def fitting(
    lm: LanguageModel, rows: tuple[Example, ...], say: Callable[[str], None]
) -> tuple[tuple[Example, ...], list[str]]:
    """Return the rows that are short enough for the model in its format, and a sentence if others are left out."""
    most = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    longest = LONGEST if most is None else max(1, min(most - ROOM, LONGEST))
    lengths = map(len, encode(lm.tokenizer, rows))
    short = tuple(row for row, length in zip(rows, lengths, strict=True) if length <= longest)
    if len(short) == len(rows):
        return rows, []
    written = formats.of(lm.tokenizer).name
    note = f"{len(rows) - len(short)} of {len(rows)} rows have more than {longest} tokens in the format {written}"
    say(f"{note}; they are left out")
    return short, [f"{note}; they are left out"]


def _check_alarm(cheap: FirstToken, count: int) -> None:
    """Raise UserError where no p-value can be small enough for an alarm of the cheap detector in `count` formats."""
    if not cheap.own_prompts:
        raise UserError(f"scan: without own_prompts {CHEAP} has no p, and gives no alarm; set own_prompts to 1 or more")
    if 1 / (1 + cheap.ordinary) > cheap.false_alarms:
        each, fewer = (f" in each of {count} formats", ", or one format") if count > 1 else ("", "")
        raise UserError(
            f"scan: {CHEAP} can give no alarm, as p is at least 1/{cheap.ordinary + 1} and has to be at most "
            f"{cheap.false_alarms:.2g}{each}; set ordinary to {math.ceil(1 / cheap.false_alarms) - 1} or more, or "
            f"false_alarms higher{fewer}"
        )


def calibrated(lm: LanguageModel, detector: str, data: str) -> str:
    """Return with which models a detector's threshold was chosen, and how far this model is; empty if nothing is known.

    Args:
        lm: the model, in the format of the scan.
        detector: its name.
        data: name of the data set of the clean rows.
    """
    by: Calibration | None = getattr(registry.entry("detectors", detector), "CALIBRATED", None)
    if by is None:
        return ""
    config = lm.model.config.get_text_config()
    differs = [
        what
        for what, mine, its in (
            ("another family", (config.model_type, len(lm.tokenizer)), (by.model_type, by.vocabulary)),
            ("another size", (config.hidden_size, config.num_hidden_layers), (by.hidden_size, by.layers)),
            ("another prompt format", formats.of(lm.tokenizer).name, by.prompt_format),
            ("other rows", data, by.data),
        )
        if mine != its
    ]
    where = f"The threshold was chosen on {by.models} in the format {by.prompt_format} on rows of {by.data}"
    return f"{where}; this model: {', '.join(differs)}." if differs else f"{where}; this model is like them."


def _given(reference: LanguageModel | None, prompt_format: PromptFormat | None = None) -> Sequence[LanguageModel]:
    if reference is None:
        return ()
    if prompt_format is not None:
        formats.attach(reference.tokenizer, prompt_format)
    return (reference,)


def _record(prompt_format: PromptFormat, detector: str, scan: Scan, level: float) -> dict[str, Any]:
    """Return the record of a scan in a format; raise UserError where its score is not a number that compares."""
    if not math.isfinite(scan.score):
        raise UserError(
            f"scan: {detector} gives the score {scan.score} in the format {prompt_format.name}, which judges nothing; "
            "repair the model, or use another detector"
        )
    return {
        "format": prompt_format.name,
        "level": level,
        "detector": detector,
        "score": scan.score,
        "p": scan.p,
        "alarm": scan.alarm,
    }
