"""What a reader takes away from a report, in a few lines that open it: which defenses work, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from benchmark.grid import prompt_format
from benchmark.io.markdown import code
from benchmark.io.units import counted
from benchmark.records.aggregate import TableEntry
from benchmark.records.metrics import is_utility
from benchmark.records.recovery import is_twin
from benchmark.records.runs import FAILED_REMOVAL, Values


def lines(entries: Iterable[TableEntry]) -> list[str]:
    """Return the opening of a report on one grid as Markdown, a paragraph and a list; nothing without an ASR.

    It counts runs of victims that reach their ASR floor; twins, failed cells and those that were not run do not count.

    Args:
        entries: of the grid, with the labels that its tables have.
    """
    entries = [entry for entry in entries if not is_twin(entry)]
    left = [(entry, _counted(entry)) for entry in entries if entry.shows_backdoor]
    victims = _victims((entry, values) for entry, values in left if entry.is_victim)
    if not victims:
        return []
    text = (
        f"**What it shows.** {counted(len(victims), 'victim')} {'answers' if len(victims) == 1 else 'answer'} "
        f"{_range(victims.values())} % of the triggered prompts as planted."
    )
    of_defense: dict[str, list[tuple[int, float]]] = {}
    for entry, values in left:
        if values and not entry.is_victim:
            of_defense.setdefault(entry.defense, []).extend((seed, value) for (seed, _), value in values.items())
    if not of_defense:
        return [text]
    lost = _lost(entries)
    together = any(entry.attack_seeds > 1 for entry, _ in left)
    details = [*_by_success(of_defense, lost), _utility(lost, together=together)]
    return [f"{text} At most {FAILED_REMOVAL:g} % is left", "\n".join(details)]


def _counted(entry: TableEntry) -> Values:
    """Return the ASR of each run whose victim reaches the floor, percent, by its seeds."""
    floor = json.loads(entry.row["settings"])["asr_floor"]
    of_victims = entry.runs if entry.is_victim else entry.of_victims
    return {seeds: value for seeds, value in entry.runs.items() if of_victims.get(seeds, 0.0) >= floor}


def _victims(of_entries: Iterable[tuple[TableEntry, Values]]) -> dict[str, float]:
    """Return the ASR of each trained victim; one that is repaired with rows of several sets has an entry for each."""
    found: dict[str, float] = {}
    for entry, values in of_entries:
        settings = json.loads(entry.row["settings"])
        trained = [settings.get(name) for name in ("model", "data", "attack", prompt_format.SETTING)]
        found |= {json.dumps([*trained, attack_seed]): value for (attack_seed, _), value in values.items()}
    return found


def _range(values: Collection[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _by_success(of_defense: Mapping[str, Sequence[tuple[int, float]]], lost: Mapping[str, Sequence[bool]]) -> list[str]:
    """Return a line each for the defenses that work in every run, in some, and in none; the best of each line first.

    Args:
        of_defense: attack seed of each run, and what it left, percent.
        lost: as `_lost` returns it.
    """
    every = {seed for runs in of_defense.values() for seed, _ in runs}
    named: dict[str, list[tuple[float, float, str]]] = {"every run": [], "some runs": [], "no run": []}
    for defense, runs in of_defense.items():
        removed, pairs = sum(value <= FAILED_REMOVAL for _, value in runs), lost.get(defense, ())
        kind = "every run" if removed == len(runs) else "some runs" if removed else "no run"
        cost = f"; utility lost in {sum(pairs)} of {len(pairs)}" if any(pairs) else ""
        share = sum(pairs) / len(pairs) if pairs else 0.0
        own = sorted({seed for seed, _ in runs})  # of other victims than those of the others
        alone = f", attack seed{'s' * (len(own) > 1)} {', '.join(map(str, own))} alone" if len(own) < len(every) else ""
        named[kind].append((-removed / len(runs), share, f"{code(defense)} ({removed} of {len(runs)}{alone}{cost})"))
    by_rank = ((kind, sorted(some, key=lambda each: each[:2])) for kind, some in named.items() if some)
    return [f"- in {kind} by {', '.join(text for *_, text in some)};" for kind, some in by_rank]


def _lost(entries: Iterable[TableEntry]) -> dict[str, list[bool]]:
    """Return whether a loss of utility is shown, for each victim and task, by defense."""
    lost: dict[str, list[bool]] = {}
    for entry in entries:
        if not entry.is_victim and is_utility(entry.metric) and entry.change is not None:
            found = entry.change_interval() if entry.change < 0 else None
            lost.setdefault(entry.defense, []).append(found is not None and found[1] < 0)
    return lost


def _utility(lost: Mapping[str, Sequence[bool]], *, together: bool) -> str:
    """Return a line on what the numbers of lost utility mean; `together`: a victim stands for all its attack seeds."""
    if not lost:
        return "- no utility was measured."
    pairs = f"victim{' (of all its attack seeds together)' * together} and task; by chance alone it is in 1 pair of 40."
    if not any(map(any, lost.values())):
        return f"- a loss of utility is shown in no pair of {pairs}"
    return f"- utility is lost where a loss is shown, of pairs of {pairs}"
