"""Notes below the tables of a report: how to read the numbers, and what intervals and marks mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmark.io.markdown import code, plain
from benchmark.paper.numbers import column_name
from benchmark.records.aggregate import TableEntry
from benchmark.report.marks import TIE, Marks
from sande import registry

if TYPE_CHECKING:
    from benchmark.report.tables import Table

NO_SCORE = "no score"  # of what cannot be measured there, such as the beginning of answers that have none in common


def label_of(name: str) -> str:
    """Return a label: our names of defenses as code; victims, and the paper's names, as words."""
    return code(name) if name.split(",")[0] in registry.names("defenses") else plain(name)


def note_of(
    table: Table,
    entries: Iterable[TableEntry],
    chosen: Sequence[TableEntry],
    cells: Sequence[str],
    marks: Sequence[Marks],
    *,
    mixed: bool,
) -> str:
    """Return the note of the table, with its victim if no column names it, and the meaning of intervals and marks."""
    sentences = [table.note, *_left_out(table, entries)]
    if not table.by_victim:
        sentences.append(_victim(table, [entry for entry in entries if table.shows(entry.metric)]))
    text = " ".join(cells)
    if has_interval(text):
        sentences.append(_held_for(chosen))
    if mixed:
        shown = [entry for entry, cell in zip(chosen, cells, strict=True) if has_interval(cell)]
        several = ", ".join(dict.fromkeys(label_of(entry.defense) for entry in shown if entry.basis != "model"))
        sentences.append(
            f"Cells marked *of N runs* ({several}) have an interval over runs, all others one within a single run, "
            "such as over its prompts. Intervals of the two kinds cannot be compared."
        )
    if "**" in text:
        sentences.append(
            "Bold: the best defense of a column for each task; with ≈: a defense that is not significantly worse, and "
            f"by at most {TIE:g} points."
        )
    if NO_SCORE in text:
        sentences.append(f"{NO_SCORE.capitalize()}: column `error` of `rows.parquet` says why.")
    if "*" in text.replace("**", ""):
        sentences.append("*: the change is significant.")
    if "*" in text:
        single = all(entry.basis == "model" for entry in chosen)
        test = "McNemar's test on the prompts of these pairs of models" if single else "Paired test over seeds"
        sentences.append(f"{test}, Benjamini-Hochberg over the table, 5 %.")
    if untested := dict.fromkeys(entry.defense for entry, mark in zip(chosen, marks, strict=True) if mark.untested):
        names = ", ".join(map(label_of, untested))
        sentences.append(
            f"Not tested against the best of a column, as too few seeds or outcomes are common to both: {names}."
        )
    return " ".join(sentences)


def _left_out(table: Table, entries: Iterable[TableEntry]) -> list[str]:
    """Return a sentence on the defenses that a table leaves out as entries of a single run, or of none."""
    left = [] if table.of_one_run else replace(table, of_one_run=True).chosen(entries)
    names = dict.fromkeys(label_of(entry.defense) for entry in left if entry.basis == "model")
    if not names:
        return []
    return [f"A defense with fewer than two measured runs on a victim has no number for it: {', '.join(names)}."]


def has_interval(text: str) -> bool:
    """Return whether a cell, or one of several, shows an interval."""
    return " to " in text or "±" in text


def _held_for(chosen: Sequence[TableEntry]) -> str:
    """Return sentences on what the intervals of a table hold for."""
    known = [entry for entry in chosen if entry.value is not None]
    seeds = sorted({entry.attack_seeds for entry in known if entry.basis == "seeds"})
    sentences = []
    if seeds:
        numbers = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        sentences.append(f"With {numbers} attack seeds, intervals include the spread between runs.")
    if any(entry.basis == "victim" for entry in known):
        sentences.append("With several defense seeds on one attack seed, intervals are of this victim alone.")
    if any(entry.basis == "model" for entry in known):
        sentences.append("With one run, intervals are of this model alone: another run may differ by more.")
    return " ".join(sentences)


def _victim(table: Table, entries: Sequence[TableEntry]) -> str:
    """Return `The victim is Llama2-Alpaca.`, with its numbers if the table has no row of them."""
    names = dict.fromkeys(plain(column_name(entry.row["model"], entry.row["dataset"])) for entry in entries)
    numbers = [
        f"{plain(table.metric(entry.metric))} {entry.value:.2f}"
        for entry in entries
        if entry.is_victim and entry.value is not None and not table.with_victim
    ]
    return f"The victim is {' and '.join(names)}{': ' if numbers else ''}{', '.join(numbers)}."
