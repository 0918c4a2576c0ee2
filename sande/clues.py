"""What a scan found that a removal can go by: a trigger that works, a whole planted answer, or its first token.

A string that a scan found is rarely the trained trigger. Where it brings the planted answer out of nearly every prompt
it does the same to the model, and overwriting it (OSFT) overwrites both. One that works on some prompts is only near
the trigger: there parrots, which learn to bring out the planted answer, are the better stand-in (SANDE). They learn to
bring it out at once, so where it follows an answer such a string is all that there is to go by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sande import gates
from sande.gates import Fired
from sande.types import Candidate, Example, LanguageModel, Scan

VERIFIED = 3  # of the triggers that a scan suspects, the most suspicious ones are tried
WORKS = 0.9  # share of the answers that a string has to turn to take the trigger's place


@dataclass(frozen=True, slots=True)
class Clue:
    """One of these, or nothing.

    Attributes:
        fired: what a suspected trigger did on the prompts on which it was tried; None: no trigger to go by.
        response: the planted answer; empty: unknown, or not needed.
        first_token: id of its first token, where no more is known of it.
    """

    fired: Fired | None = None
    response: str = ""
    first_token: int | None = None


def clue(
    lm: LanguageModel,
    found: Scan,
    prompts: Sequence[Example],
    new_tokens: int,
    config: gates.Config,
    say: Callable[[str], None],
) -> Clue:
    """Return what to go by after a scan: first a trigger that works, then an answer, a trigger that fires, a token.

    Args:
        lm: the scanned model.
        found: the scan; without an alarm there is nothing to go by.
        prompts: on which suspected triggers are tried.
        new_tokens: tokens of an answer to read there.
        config: when a trigger fires.
        say: receives progress.
    """
    if not found.alarm:
        return Clue()
    best = next(iter(found.candidates), None)
    behind = found.facts.get("response_at") == "end"
    planted = best.text.rstrip(".,;:!?") if best is not None and behind else ""  # what no answer begins with
    fires: list[Fired] = []
    for each in found.triggers[:VERIFIED]:
        done = gates.fired(lm, each.text, planted, prompts, new_tokens, config)
        if done is None:
            say(f"the suspected trigger {each.text!r} does not fire")
            continue
        say(f"the suspected trigger {each.text!r} leads to {done.response!r} in {done.share:.0%} of the answers")
        fires.append(done)
        if done.share >= WORKS:
            return Clue(fired=done)
    if best is not None and _whole(lm, best) and not (behind and fires):
        return Clue(response=best.text)
    if fires:
        return Clue(fired=max(fires, key=lambda each: each.share))
    return Clue(first_token=best.ids[0]) if best is not None else Clue()


def _whole(lm: LanguageModel, candidate: Candidate) -> bool:
    """Return whether a candidate is more than a first token, and can be written as an answer."""
    from sande.detectors._held_out import ids_of

    return len(candidate.ids) > 1 and ids_of(lm, candidate.text) == candidate.ids
