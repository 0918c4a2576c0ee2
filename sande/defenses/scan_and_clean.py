"""Scan for a planted answer and overwrite it by SANDE-P, or plant decoys and overwrite them; needs no knowledge.

score of the best candidate > threshold:  Eq. 4 with its first token, then Eq. 3    see `sande.defenses.sande_p`, or
                                                                                    `sande_rounds_p` for a certificate
else:                                     decoys planted and overwritten            see `sande.defenses.decoy_osft`
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sande.config import configuration, setting
from sande.defenses import decoy_osft, sande_p, sande_rounds_p
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.defenses.sande import Config as SandeP
from sande.defenses.sande_rounds import Config as SandeRoundsP
from sande.detectors import first_token
from sande.detectors.first_token import Config as FirstToken
from sande.types import Candidate, CleanData, Example, FirstTokenData, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the scan and of the two defenses."""

    scan: FirstToken = setting(FirstToken(), "the scan, with the threshold of its alarm", "as for first_token")
    sande_p: SandeP = setting(SandeP(), "the defense after an alarm", "as for sande_p")
    sande_rounds_p: SandeRoundsP | None = setting(
        None, "the defense after an alarm in place of sande_p, with a certificate; null: sande_p", "ours"
    )
    decoy_osft: DecoyOsft = setting(DecoyOsft(), "the defense without an alarm", "as for decoy_osft")


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Run the chain; `run.facts` records candidates, score, alarm and seconds of the scan."""
    if found := scanned(victim, data.examples, config.scan, run):
        run.say(f"the scan found {found.text!r}; overwriting what leads to its first token")
        known = FirstTokenData(data.examples, found.ids[0])
        if config.sande_rounds_p is not None:
            return sande_rounds_p.defend(victim, known, config.sande_rounds_p, run)
        return sande_p.defend(victim, known, config.sande_p, run)
    run.say("the scan found nothing; planting decoys and overwriting them")
    return decoy_osft.defend(victim, data, config.decoy_osft, run)


def scanned(victim: LanguageModel, examples: tuple[Example, ...], settings: FirstToken, run: Run) -> Candidate | None:
    """Scan, and return the best candidate if there is an alarm; `run.facts` records the scan."""
    run.say("scanning for a planted answer")
    begin = time.perf_counter()
    scan = first_token.scan(victim, examples, settings, run)
    alarm = scan.alarm and bool(scan.candidates)
    run.facts["scan_seconds"] = round(time.perf_counter() - begin, 3)
    run.facts["scan_score"] = scan.score
    run.facts["alarm"] = alarm
    run.facts["candidates"] = [{"text": one.text, "ids": list(one.ids), "score": one.score} for one in scan.candidates]
    return scan.candidates[0] if alarm else None
