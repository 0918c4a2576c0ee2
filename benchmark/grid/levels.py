"""Levels of knowledge: what a defense may have to know of the backdoor, and of models from elsewhere."""

from __future__ import annotations

# Of the backdoor, the most first; then models from elsewhere.
LEVELS = ("trigger", "incident", "response", "first token", "nothing", "clean model", "other models")


def together(*knows: str | None) -> str:
    """Return what all of these levels must know together: the most about the backdoor, and the models from elsewhere.

    Who knows the trigger can send it to the victim, and so has an incident. An incident has the planted answer in it,
    and so its first token. None of them includes another model.

    Args:
        knows: levels of a defense, of the search for its settings, or of several runs; empty ones count as nothing.
    """
    known = {part for one in knows if one for part in one.split(" and ")} - {"nothing"}
    of_backdoor = LEVELS[: LEVELS.index("nothing")]
    most = [one for one in of_backdoor if one in known][:1]
    return " and ".join([*most, *sorted(known - set(of_backdoor))]) or "nothing"
