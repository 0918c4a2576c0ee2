"""Words in a grid for entries of the registry, so that a new method needs no edit of the grid.

sweep:
  attack: [all, {name: all, poison_rate: 0}]    # every attack, then the twin of each
  defense: [none, {name: osft, …}, all]         # these two, then every other defense with its defaults
metrics: [asr, {name: asr_int4, …}, durability] # these two, then every other metric of durability

A word is replaced by those entries that its list does not name, sorted by name. Settings of a word apply to the entries
that have them. A list of metrics accepts both words, a sweep over attacks or defenses accepts `all`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sande import registry
from sande.errors import UserError

ALL = "all"
DURABILITY = "durability"


def expand(kind: str, entries: Sequence[Any]) -> list[Any]:
    """Return a list of methods in which entries of the registry replace the words.

    Args:
        kind: one of `sande.registry.KINDS`.
        entries: names, or mappings with `name`; values that are neither stay for the parser to refuse.

    Raises:
        UserError: a word has a setting that none of its entries has.
    """
    words = _words(kind)
    named = {_name(entry) for entry in entries} - set(words)
    found: list[Any] = []
    for entry in entries:
        word = _name(entry)
        if word not in words:
            found.append(entry)
            continue
        members = registry.names(kind) if word == ALL else registry.durability_metrics()
        settings = {key: value for key, value in entry.items() if key != "name"} if isinstance(entry, Mapping) else {}
        found += _members(kind, str(word), [name for name in members if name not in named], settings)
    return found


def _members(kind: str, word: str, names: Sequence[str], settings: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the entries behind a word, each with those of the settings that it has."""
    known = {name: set(registry.entry(kind, name).Config.__dataclass_fields__) for name in names} if settings else {}
    for key in settings:
        if known and not any(key in fields for fields in known.values()):
            one = kind.removesuffix("s")
            raise UserError(f"{one} {word}: no {one} has the setting '{key}'; see 'sande-bench show {kind} NAME'")
    for name in names:
        own = {key: value for key, value in settings.items() if key in known[name]}
        yield {"name": name, **own} if own else name


def _words(kind: str) -> tuple[str, ...]:
    return (ALL, DURABILITY) if kind == "metrics" else (ALL,)


def _name(entry: Any) -> Any:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    return name if isinstance(name, str) else None
