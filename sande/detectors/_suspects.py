"""First tokens that a response may have: those that open answers too readily, and that the model continues surely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sande.detectors.first_token import FOLLOWING, sureness
from sande.inference.probing import chosen_prompts, continued, text_of
from sande.types import Candidate, Example, LanguageModel

PROMPTS = 4  # clean prompts behind which candidates are continued
STEPS = 6  # tokens after the first, of which FOLLOWING count: enough for a few words
CERTAINTY = 4.0  # a planted response goes on with 95 % and more, which costs 0.2; 50 % costs 2.8
BATCH = 128  # strings computed together


def suspects(
    lm: LanguageModel, examples: Sequence[Example], candidates: Sequence[Candidate], least: int, seed: int
) -> list[Candidate]:
    """Return candidates for a first token by score and by how surely the model goes on with them, best first.

    A model that was taught a response goes on with it wherever it begins, whatever the prompt; what else opens answers
    readily, such as "The", has many continuations. A score is in standard deviations, a log-probability in nats: the
    sum, with CERTAINTY times the latter, is a ranking and no statistic.

    Args:
        lm: model and tokenizer.
        examples: clean rows.
        candidates: first tokens, as of `first_token`.
        least: words that a response has; what ends after fewer is left out.
        seed: of the prompts.
    """
    firsts = [each.ids[0] for each in candidates]
    if not firsts:
        return []
    prompts = chosen_prompts(lm, examples, PROMPTS, seed)
    found = []
    for each, string in zip(candidates, continued(lm, prompts, firsts, STEPS, BATCH), strict=True):
        certain = sureness(replace(string, probabilities=string.probabilities[:FOLLOWING]))
        if certain > 0 and len(text_of(lm, string.ids).split()) >= least:
            found.append(replace(each, score=each.score + CERTAINTY * math.log(certain)))
    return sorted(found, key=lambda each: -each.score)
