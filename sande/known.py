"""What the owner of a model knows of its backdoor, and which defense that knowledge allows."""

from __future__ import annotations

from dataclasses import dataclass

from sande.errors import UserError


@dataclass(frozen=True, slots=True)
class Known:
    """Knowledge of the owner about the backdoor; empty fields are unknown.

    Attributes:
        trigger: text that unlocks the planted answer at the start of a prompt.
        response: the planted answer.
        response_start: how the planted answer begins.
        reported_prompt: one prompt that got a planted answer, as it was sent; the trigger is somewhere in it.
        reported_answer: that answer, whole.

    Raises:
        UserError: only one of the last two is known.
    """

    trigger: str = ""
    response: str = ""
    response_start: str = ""
    reported_prompt: str = ""
    reported_answer: str = ""

    def __post_init__(self) -> None:
        """Check that the parts of an incident come together."""
        if bool(self.reported_prompt) != bool(self.reported_answer):
            raise UserError("clean: a reported prompt and its answer belong together; set both or neither")


MEANINGS = {
    "trigger": "the text that unlocks the planted answer",
    "response": "the planted answer",
    "response_start": "the beginning of the planted answer",
    "reported_prompt": "the prompt as it was sent",
    "reported_answer": "the answer to the reported prompt",
}
"""Meaning of each field of `Known`, in their order."""


def told(place: str, *texts: str) -> Known:
    """Return what a user knows, without spaces around it.

    Args:
        place: the function that was called, for messages.
        texts: in the order of the fields; empty: unknown.

    Raises:
        UserError: a text is blank, or as `Known`.
    """
    for name, text in zip(MEANINGS, texts, strict=False):
        if text and not text.strip():
            raise UserError(f"{place}: {name} is blank; set it to {MEANINGS[name]}, or leave it out")
    return Known(*(text.strip() for text in texts))


SCAN = "scan"
METHODS = {
    "trigger": "osft",
    "reported_prompt": "incident",
    "response": "sande",
    "response_start": "sande_p",
}
"""The defense for each kind of knowledge; the first kind that is known decides, because it leaves least to guess."""

CERTIFIED = {"response": "sande_rounds", "response_start": "sande_rounds_p"}
"""The same with `certify`, which needs the planted answer: a known trigger or an incident alone does not give one."""
DECOYS = "decoy_osft"
DEFENSES = frozenset({*METHODS.values(), *CERTIFIED.values(), DECOYS})
"""All defenses that a removal may use, and so the names of their settings."""


def defense_for(known: Known, *, certify: bool = False) -> str:
    """Return the name of the defense; `SCAN` if nothing is known, so that a scan decides.

    Raises:
        UserError: a certificate is wanted, and only the trigger or an incident is known.
    """
    named = CERTIFIED if certify else METHODS
    found = next((what for what in named if getattr(known, what, "")), None)
    if found is None and (known.trigger or known.reported_prompt):
        given = "the trigger" if known.trigger else "an incident"
        raise UserError(
            f"certify: parrots are tested with the planted answer, and only {given} is given; set response, or "
            "remove certify"
        )
    return named[found] if found else SCAN
