"""Decoys with the response that a scan found: plant them and overwrite them, and with them the unknown trigger.

    score of the best first token > threshold:  r_d = that token, continued greedily as long as
                                                mean over prompts of  log Pr(next token | x + r_d)  >=  `cut`
    else:                                       r_d = a fixed response for each decoy
    then:                                       decoys planted (Eq. 1) and overwritten (Eq. 3)

where a decoy is a trigger of our own with a response r_d; see `sande.defenses.decoy_osft`. After Iwahana et al. 2026
("Dummy Backdoor as a Defense: Removing Unknown Backdoors via Shared Internal Mechanisms for Generative LLMs", arXiv
2606.11648): triggers with the same objective change the activations alike, so overwriting one of our own removes an
unknown one, too. Their defender knows the objective. Here the detector `first_token` looks for it, so that the method
uses nothing about the real backdoor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sande.config import configuration, setting
from sande.defenses import decoy_osft, scan_and_clean
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.detectors.first_token import Config as FirstToken
from sande.types import Candidate, CleanData, Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the scan, of the response that follows from it, and of the decoys."""

    scan: FirstToken = setting(FirstToken(), "the scan, with the threshold of its alarm", "as for first_token")
    prompts: int = setting(8, "clean prompts after which the found token is continued", "as for prefix_scan", ge=1)
    longest: int = setting(16, "tokens of the longest response", "as for prefix_scan", ge=1)
    cut: float = setting(
        -1.0, "mean log-probability of a token, in nats, below which the response ends", "as for prefix_scan", le=0
    )
    decoy_osft: DecoyOsft = setting(DecoyOsft(), "the decoys, planted and overwritten", "as for decoy_osft")


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Scan, then plant and overwrite decoys; `run.facts` records the scan, the response and the decoys."""
    decoys = decoy_osft.draw(config.decoy_osft.decoys, run.seed)
    if found := scan_and_clean.scanned(victim, data.examples, config.scan, run):
        run.facts["objective"] = response(victim, data.examples, found, config, run.seed)
        run.say(f"the scan found {run.facts['objective']!r}; planting decoys that answer it, and overwriting them")
        decoys = [replace(decoy, response=run.facts["objective"]) for decoy in decoys]
    else:
        run.say("the scan found nothing; planting decoys with fixed responses, and overwriting them")
    return decoy_osft.plant_and_overwrite(victim, data.examples, decoys, config.decoy_osft, run)


def response(victim: LanguageModel, examples: tuple[Example, ...], found: Candidate, config: Config, seed: int) -> str:
    """Return the candidate, continued by what the victim writes after it whatever the prompt."""
    from sande.inference.probing import chosen_prompts, continued, text_of

    prompts = chosen_prompts(victim, examples, config.prompts, seed)
    steps = config.longest - 1
    continuation = continued(victim, prompts, found.ids[:1], steps, 1, lambda log_PB: log_PB.mean(0) >= config.cut)
    return text_of(victim, continuation[0].ids)
