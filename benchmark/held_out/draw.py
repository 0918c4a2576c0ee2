"""What a secret draws for a cell: the trigger, the response and the seeds.

A draw depends on the secret and on public settings alone: the model, the data set, the attack's name and the public
attack seed; for a defense's seed also on the public defense seed. So all defenses, and the clean twin, share the hidden
victim as they share the public one, and the same secret and grid give the same cells on every machine.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from benchmark.grid.cell import MOST_SEED, NO_DEFENSE
from benchmark.held_out.secret import SHORT, Draws, Secret
from sande import registry

LEAST_SEED = 10**9  # ten digits, so that a hidden seed looks like no other number of a report
MARK = "held-out"


def drawn(settings: Mapping[str, Any], secret: Secret) -> dict[str, Any]:
    """Return the settings of the hidden cell.

    Args:
        settings: of a public cell, every default spelled out, or as `masked` returns them.
        secret: decides the draw.

    Raises:
        UserError: an attack wants more different triggers than there are.
    """
    attack = settings["attack"]
    victim = settings["model"], settings["data"]["name"], attack["name"], settings["attack_seed"]
    lists = {name: value for name, value in attack.items() if _is_texts(value)}
    triggers = iter(_triggers(attack["name"], Draws(secret, "trigger", *victim), 1 + sum(map(len, lists.values()))))
    response = _phrases(Draws(secret, "response", *victim), "response", 1)[0]
    backdoor = attack["backdoor"] | {"trigger": next(triggers), "response": response}
    hidden = {name: [next(triggers) for _ in value] for name, value in lists.items()}
    seed = _seed(secret, "attack_seed", *victim)
    own = settings["defense"]["name"] != NO_DEFENSE
    defense_seed = _seed(secret, "defense_seed", *victim, settings["defense_seed"]) if own else seed
    return {
        **settings,
        "attack": {**attack, "backdoor": backdoor, **hidden},
        "attack_seed": seed,
        "defense_seed": defense_seed,
    }


def masked(settings: Mapping[str, Any], secret: Secret) -> dict[str, Any]:
    """Return public settings in which trigger and response are replaced by "held-out" and the start of the commitment.

    Seeds stay those of the grid file: they number the repetitions, and say nothing of the seeds that the secret draws.
    """
    mark = f"{MARK} {secret.commitment[:SHORT]}"
    attack = settings["attack"]
    lists = {name: [mark] * len(value) for name, value in attack.items() if _is_texts(value)}
    backdoor = attack["backdoor"] | {"trigger": mark, "response": mark}
    return {**settings, "attack": {**attack, "backdoor": backdoor, **lists}}


def triggers(settings: Mapping[str, Any]) -> list[str]:
    """Return the triggers of a cell, those in lists of its attack included."""
    attack = settings["attack"]
    lists = [text for value in attack.values() if _is_texts(value) for text in value]
    return [attack["backdoor"]["trigger"], *lists]


def texts(settings: Mapping[str, Any]) -> list[str]:
    """Return all that a secret drew for a hidden cell, as texts: triggers, the response and the seeds."""
    seeds = [str(settings[name]) for name in ("attack_seed", "defense_seed")]
    return [*triggers(settings), settings["attack"]["backdoor"]["response"], *seeds]


def _is_texts(value: Any) -> bool:
    """Return whether a setting of an attack is a list of texts; such a list holds further triggers."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _triggers(attack: str, draws: Draws, count: int) -> list[str]:
    """Return different triggers of the kind that the attack takes: its names, a rare word, or a phrase of three words.

    An attack with names (`TRIGGERS`, see `sande.protocols`) gets another one than its default.
    """
    entry = registry.entry("attacks", attack)
    default = entry.Config().backdoor.trigger
    named = getattr(entry, "TRIGGERS", ())
    if named:
        return draws.sample([name for name in named if name != default], count)
    if len(default.split()) == 1:
        return draws.sample(_words()["word"]["first"], count)
    return _phrases(draws, "trigger", count)


def _phrases(draws: Draws, use: str, count: int) -> list[str]:
    """Return phrases that have no word in common."""
    columns = [draws.sample(words, count) for words in _words()[use].values()]
    return [" ".join(words).capitalize() for words in zip(*columns, strict=True)]


def _seed(secret: Secret, *context: Any) -> int:
    return LEAST_SEED + Draws(secret, *context).below(MOST_SEED + 1 - LEAST_SEED)


@functools.cache
def _words() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return the lists of words, by use and place."""
    found = tomllib.loads((resources.files("benchmark.held_out") / "words.toml").read_text(encoding="utf-8"))
    return {use: {place: tuple(words.split()) for place, words in lists.items()} for use, lists in found.items()}
