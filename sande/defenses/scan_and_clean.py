"""Scan for a backdoor and overwrite what was found, or plant decoys and overwrite them; needs no knowledge.

a trigger that works, with `haystack`:    Eq. 3 with that trigger                   see `sande.defenses.osft`
else an answer that it found:             Eq. 4 with it, then Eq. 3                 see `sande.defenses.sande`
else a first token whose score > threshold:
                                          Eq. 4 with it, then Eq. 3                 see `sande.defenses.sande_p`, or
                                                                                    `sande_rounds_p` for a certificate
else:                                     decoys planted and overwritten            see `sande.defenses.decoy_osft`

`sande.clues` says what a scan's result is good for, here as in `sande-bench clean`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sande import clues, formats, gates, scanning
from sande.candidates import as_records
from sande.clues import Clue
from sande.config import configuration, setting
from sande.data.splits import Source
from sande.defenses import decoy_osft, osft, sande, sande_p, sande_rounds_p
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.defenses.osft import Config as Osft
from sande.defenses.sande import Config as SandeP
from sande.defenses.sande_rounds import Config as SandeRoundsP
from sande.detectors import first_token, haystack
from sande.detectors.first_token import Config as FirstToken
from sande.detectors.haystack import Config as Haystack
from sande.errors import UserError
from sande.types import (
    Candidate,
    CleanData,
    Example,
    FirstTokenData,
    LanguageModel,
    ResponseData,
    Run,
    Scan,
    TriggerData,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@configuration
class Config:
    """Settings of the scans and of the defenses."""

    haystack: Haystack | None = setting(
        None,
        "the scan for a trigger, before that for a first token; null: no such scan",
        "ours; its settings as for haystack",
    )
    scan_data: Source | None = setting(
        None,
        "data set whose last 400 rows it scans and tries triggers with, as clean does; not the victim's own set, whose "
        "last rows are test rows; null: the clean rows",
        "ours",
    )
    gate: gates.Config = setting(gates.Config(), "the test whether a trigger that was found works", "ours")
    new_tokens: int = setting(12, "tokens of an answer that this test reads", "as for clean", ge=1)
    osft: Osft = setting(Osft(), "the defense after a trigger was found", "as for osft")
    scan: FirstToken = setting(
        FirstToken(), "the scan for a first token, with the threshold of its alarm", "as for first_token"
    )
    sande_p: SandeP = setting(
        SandeP(),
        "the defense after an answer was found, of which its first token or the whole is known",
        "as for sande_p",
    )
    sande_rounds_p: SandeRoundsP | None = setting(
        None, "the defense after an alarm in place of sande_p, with a certificate; null: sande_p", "ours"
    )
    decoy_osft: DecoyOsft = setting(DecoyOsft(), "the defense without an alarm", "as for decoy_osft")


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check the prompts, and what the defenses after an alarm check, before a scan that may take long."""
    if config.haystack is not None:
        _prompts(_rows(data, config), config)
    with _named("sande_p"):
        sande.check(tokenizer, data, config.sande_p)
    if config.sande_rounds_p is not None:
        with _named("sande_rounds_p"):
            sande_rounds_p.check(tokenizer, data, config.sande_rounds_p)


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Run the chain; `run.facts` records candidates, score and alarm of the last scan, and seconds of all.

    Raises:
        UserError: there is one prompt to try triggers on, or as the defense that follows.
    """
    rows = _rows(data, config)
    seen = _clue(victim, rows, config, run)
    if seen.fired is not None:
        trigger, written = seen.fired.trigger, formats.of(victim.tokenizer)
        run.say(f"the scan found the trigger {trigger!r}; overwriting it")
        triggered = TriggerData(data.examples, lambda example: gates.plant(example, trigger, written))
        return osft.defend(victim, triggered, config.osft, run)
    if seen.response:
        run.say(f"the scan found the answer {seen.response!r}; overwriting what leads to it")
        return sande.defend(victim, ResponseData(data.examples, seen.response), config.sande_p, run)
    token = seen.first_token
    if token is None and (found := scanned(victim, rows, config.scan, run)):
        token = found.ids[0]
    if token is not None:
        run.say(f"the scan found {victim.tokenizer.decode([token])!r}; overwriting what leads to it")
        known = FirstTokenData(data.examples, token)
        if config.sande_rounds_p is not None:
            return sande_rounds_p.defend(victim, known, config.sande_rounds_p, run)
        return sande_p.defend(victim, known, config.sande_p, run)
    run.say("the scan found nothing; planting decoys and overwriting them")
    return decoy_osft.defend(victim, data, config.decoy_osft, run)


def scanned(victim: LanguageModel, examples: tuple[Example, ...], settings: FirstToken, run: Run) -> Candidate | None:
    """Scan for a first token, and return the best candidate if there is an alarm; `run.facts` records the scan."""
    run.say("scanning for a planted answer")
    begin = time.perf_counter()
    scan = first_token.scan(victim, examples, settings, run)
    alarm = scan.alarm and bool(scan.candidates)
    _record(scan, alarm, time.perf_counter() - begin, run)
    return scan.candidates[0] if alarm else None


def _rows(data: CleanData, config: Config) -> tuple[Example, ...]:
    """Return the rows to scan, and to try triggers with."""
    return scanning.examples(config.scan_data.name) if config.scan_data else data.examples


def _prompts(rows: tuple[Example, ...], config: Config) -> tuple[Example, ...]:
    """Return the prompts on which a trigger is tried; raise UserError where there is one, see `gates.check`."""
    prompts = rows[: config.gate.prompts]
    if len(prompts) < 2:
        raise UserError(
            f"scan_and_clean: a trigger is tried on {len(prompts)} prompt, and needs two; choose more clean rows, or "
            "set haystack to null"
        )
    return prompts


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """Let errors of a defense name the setting that holds its settings."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}: {error}") from None


def _clue(victim: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> Clue:
    """Scan for a trigger, and return what to go by; `run.facts` records the scan, and what the trigger does."""
    if config.haystack is None:
        return Clue()
    prompts = _prompts(examples, config)
    run.say("scanning for a trigger")
    begin = time.perf_counter()
    scan = haystack.scan(victim, examples, config.haystack, run)
    _record(scan, scan.alarm and bool(scan.triggers), time.perf_counter() - begin, run)
    run.facts["triggers"] = as_records(scan.triggers)
    found = clues.clue(victim, scan, prompts, config.new_tokens, config.gate, run.say)
    if found.fired is not None:
        run.facts["fired"] = found.fired.as_dict()
    return found


def _record(scan: Scan, alarm: bool, seconds: float, run: Run) -> None:
    run.facts["scan_seconds"] = round(run.facts.get("scan_seconds", 0.0) + seconds, 3)
    run.facts["scan_score"] = scan.score
    run.facts["alarm"] = alarm
    run.facts["candidates"] = as_records(scan.candidates)
