"""Tables of a report: format numbers, mark the best and significant ones, write Markdown and Parquet.

`benchmark.report.layouts` defines the tables and where a report shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from benchmark.io.files import write_atomically, write_table
from benchmark.io.markdown import MISSING, code, markdown_table, plain
from benchmark.paper.numbers import column_name
from benchmark.plan.failures import UNSCORABLE
from benchmark.records.aggregate import TableEntry
from benchmark.records.metrics import is_backdoor
from benchmark.records.schema import ATTACK_FAILED, FAILED, NOT_RUN, OK
from benchmark.report.marks import TIE, Marks, judge, unjudged
from benchmark.report.short import undefended, without_common_parts
from sande import registry
from sande.models.difference import MOST

NO_SCORE = "no score"  # of what cannot be measured there, such as the beginning of answers that have none in common
MANY = 6  # victims; more of them than that, and than defenses, are the rows of a table


@dataclass(frozen=True, slots=True)
class Table:
    """One table: rows of defenses (and metrics), columns of victims; the other way round with many victims.

    Attributes:
        name: of its files.
        title: heading on the page.
        note: how to read it.
        shows: returns whether the table has a metric.
        cell: formats one entry.
        header: of the row labels: the defense and, if each metric has a row of its own, the metric.
        metric: returns the table's name of a metric.
        compares: True to mark the best of each column, ties with it, and significant changes.
        with_victim: True for a row of the victim.
        by_victim: True if columns are victims; else the note names the victim.
        repeats: True to name a defense on each of its rows, False on the first one alone, as in the paper.
        of_one_run: False to leave out entries of a single run.
        shows_backdoor: True for the one metric of each attack that shows its backdoor, alone.
    """

    name: str
    title: str
    note: str
    shows: Callable[[str], bool]
    cell: Callable[[TableEntry, Marks], str]
    header: tuple[str, ...] = ("Defense", "Metric")
    metric: Callable[[str], str] = str
    compares: bool = False
    with_victim: bool = True
    by_victim: bool = True
    repeats: bool = True
    of_one_run: bool = True
    shows_backdoor: bool = False

    def chosen(self, entries: Iterable[TableEntry]) -> list[TableEntry]:
        """Return the entries that the table has."""
        return [
            entry
            for entry in entries
            if self.shows(entry.metric)
            and (self.with_victim or not entry.is_victim)
            and (self.of_one_run or entry.basis != "model")
            and (entry.shows_backdoor or not self.shows_backdoor)
        ]


def rate(entry: TableEntry, marks: Marks, digits: int = 1) -> str:
    """Return `99.0 (94.6 to 99.8)`."""
    interval = "" if entry.low is None else f" ({entry.low:.1f} to {entry.high:.1f})"
    return _value(entry, marks, digits) + interval


def recovered(entry: TableEntry, marks: Marks) -> str:
    """Return `31.0 (20.1 to 45.2), hidden`: a rate, and what the defense did to the backdoor."""
    return rate(entry, marks) + (f", {entry.removal}" if entry.removal else "")


def utility(entry: TableEntry, marks: Marks) -> str:
    """Return `41.18 ↑0.98 (-1.2 to +3.2)`: the value, and its change relative to the victim with its interval."""
    change, low, high = _change(entry, marks), marks.change_low, marks.change_high
    if change and low is not None and high is not None:
        change += f" ({low:+.1f} to {high:+.1f})"
    return _value(entry, marks, digits=2) + change


def as_in_paper(entry: TableEntry, marks: Marks) -> str:
    """Return `0.13 (0.0 to 1.1)` for a rate, `41.18 ± 1.2 ↑0.98*` for utility: as in the paper, with intervals."""
    if is_backdoor(entry.metric):
        return rate(entry, marks, digits=2)
    interval = ""
    if entry.value is not None and entry.low is not None and entry.high is not None:
        interval = f" ± {max(entry.value - entry.low, entry.high - entry.value):.1f}"
    return _value(entry, marks, digits=2) + interval + _change(entry, marks)


def failures(entry: TableEntry, marks: Marks) -> str:
    """Return `20.0 (2.5 to 55.6), of 10`: the share of runs that left the backdoor, with its interval; and the runs."""
    found = entry.failures()
    assert found is not None, "the table has no entries of one run"
    return f"{found[0]:.1f} ({found[1]:.1f} to {found[2]:.1f}), of {len(entry.runs)}"


def cost(entry: TableEntry, marks: Marks) -> str:
    """Return `58 s, 12,400 tokens, 3.1 GiB` of the defense's training, and passes for a token under a guard.

    Where most of the stored weights are the victim's, it says that too.
    """
    spent = (
        f"{entry.cost['seconds']:.0f} s, {entry.cost['tokens']:,.0f} tokens, "
        f"{entry.cost['peak_memory_bytes'] / 2**30:.1f} GiB"
        if entry.cost["tokens"]
        else "nothing"
    )
    same = entry.row.get("unchanged_weights") or 0.0
    if same > 100 * MOST:
        spent += f"; {same:.0f} % of the weights are as before"
    passes = entry.row.get("decoding_models") or 1
    return spent if passes == 1 else f"{spent}; {passes} passes a token in every answer"


def _value(entry: TableEntry, marks: Marks, digits: int) -> str:
    text = f"{entry.value:.{digits}f}"
    return f"**{'≈' if marks.tie else ''}{text}**" if marks.best or marks.tie else text


def _change(entry: TableEntry, marks: Marks) -> str:
    if entry.change is None or entry.is_victim:
        return ""
    return f" {'↓' if entry.change < 0 else '↑'}{abs(entry.change):.2f}{'*' if marks.significant else ''}"


def markdown(table: Table, entries: Sequence[TableEntry]) -> str:
    """Return the table as Markdown; cells that are missing, failed or not run say so, and cells with failed attacks."""
    return _markdown(table, entries, _marks(table, table.chosen(entries)))


def _marks(table: Table, chosen: Sequence[TableEntry]) -> list[Marks]:
    if table.compares:
        return judge(chosen)
    return unjudged(chosen) if table.cell is utility else [Marks()] * len(chosen)


def _markdown(table: Table, entries: Sequence[TableEntry], marks: Sequence[Marks]) -> str:
    chosen = table.chosen(entries)
    cells = ["" if e.value is None else table.cell(e, m) for e, m in zip(chosen, marks, strict=True)]
    mixed = len({e.basis == "model" for e, cell in zip(chosen, cells, strict=True) if _has_interval(cell)}) > 1
    written = [_written(e, cell, mixed=mixed) for e, cell in zip(chosen, cells, strict=True)]
    victims = list(dict.fromkeys(e.victim for e in chosen))
    turned = not table.compares and _has_many_victims(entries)
    apart = undefended(chosen) if len(victims) > MANY and not turned else set()
    short, common = without_common_parts(victims) if table.by_victim else ({}, "")
    pairs = list(zip(chosen, written, strict=True))
    lines = _lines(table, [(e, text) for e, text in pairs if e.victim not in apart], short, turned=turned)
    if apart:
        lone = _lines(table, [(e, text) for e, text in pairs if e.victim in apart], short, turned=True)
        lines += ["", "Victims without any defense:", "", *lone]
    note = _note(table, entries, chosen, written, marks, mixed=mixed) + (
        f" All victims: {plain(common)}." if common else ""
    )
    return "\n".join([f"### {table.title}", "", *lines, "", note, ""])


def _lines(
    table: Table, pairs: Sequence[tuple[TableEntry, str]], short: Mapping[str, str], *, turned: bool
) -> list[str]:
    """Return the lines of a table of entries, each with its text; its rows are victims if it is turned."""
    defenses, victims = (list(dict.fromkeys(getattr(e, name) for e, _ in pairs)) for name in ("defense", "victim"))
    first, second = (victims, defenses) if turned else (defenses, victims)
    at = {((e.victim, e.metric, e.defense) if turned else (e.defense, e.metric, e.victim)): text for e, text in pairs}
    body = []
    for label in first:
        for index, metric in enumerate(dict.fromkeys(metric for row, metric, _ in at if row == label)):
            name = _label(short.get(label, label)) if table.repeats or index == 0 else ""
            names = [name, plain(table.metric(metric))]
            body.append(names[: len(table.header)] + [at.get((label, metric, column), MISSING) for column in second])
    header = ("Victim", *table.header[1:]) if turned else table.header
    heads = [_label(short.get(name, name)) for name in second]
    return markdown_table([*header, *heads], body, "l" * len(header) + "r" * len(second))


def _has_many_victims(entries: Iterable[TableEntry]) -> bool:
    """Return whether victims are the rows: by all entries of a page, so that its tables have one form."""
    defenses, victims = ({getattr(entry, name) for entry in entries} for name in ("defense", "victim"))
    return len(victims) > max(MANY, len(defenses))


def _label(name: str) -> str:
    """Return a label: our names of defenses as code; victims, and the paper's names, as words."""
    return code(name) if name.split(",")[0] in registry.names("defenses") else plain(name)


def _note(
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
    if _has_interval(text):
        sentences.append(_held_for(chosen))
    if mixed:
        shown = [entry for entry, cell in zip(chosen, cells, strict=True) if _has_interval(cell)]
        several = ", ".join(dict.fromkeys(_label(entry.defense) for entry in shown if entry.basis != "model"))
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
        names = ", ".join(map(_label, untested))
        sentences.append(
            f"Not tested against the best of a column, as too few seeds or outcomes are common to both: {names}."
        )
    return " ".join(sentences)


def _left_out(table: Table, entries: Iterable[TableEntry]) -> list[str]:
    """Return a sentence on the defenses that a table leaves out as entries of a single run, or of none."""
    left = [] if table.of_one_run else replace(table, of_one_run=True).chosen(entries)
    names = dict.fromkeys(_label(entry.defense) for entry in left if entry.basis == "model")
    if not names:
        return []
    return [f"A defense with fewer than two measured runs on a victim has no number for it: {', '.join(names)}."]


def _has_interval(text: str) -> bool:
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


def _written(entry: TableEntry, cell: str, *, mixed: bool) -> str:
    """Return the text of a cell: its number, or why there is none, and what is to be said of its runs.

    Args:
        entry: of the cell.
        cell: its number.
        mixed: True if some intervals of the table are over several runs, and others of one run.
    """
    if entry.value is None:
        return NO_SCORE if entry.row.get("failure") == UNSCORABLE else "failed" if entry.failed else "not run"
    notes = []
    if entry.attack_failed:
        some = f"{entry.attack_failed} of {entry.seeds} attacks failed"
        notes.append("attack failed" if entry.attack_failed == entry.seeds else some)
    if entry.failed:
        notes.append(f"{entry.failed} of {entry.seeds} seeds failed")
    if entry.not_run:
        notes.append(f"{entry.not_run} of {entry.seeds} seeds not run")
    if mixed and entry.basis != "model" and _has_interval(cell):
        cell += f", of {len(entry.runs)} runs"
    return " ".join([cell, *(f"[{note}]" for note in notes)])


def write(table: Table, entries: Sequence[TableEntry], folder: Path, part: str, name: str) -> str:
    """Write `NAME.md` and `NAME.parquet` (tidy, one row per entry).

    Args:
        table: the table.
        entries: of one grid.
        folder: for the files.
        part: name of the grid.
        name: of the files.

    Returns:
        The Markdown.
    """
    chosen = table.chosen(entries)
    marks = _marks(table, chosen)
    text = _markdown(table, entries, marks)
    write_atomically(folder / f"{name}.md", text)
    records = [
        {
            "part": part,
            "table": table.name,
            "row": entry.defense,
            "column": entry.victim,
            "metric": entry.metric,
            "value": entry.value,
            "ci_low": entry.low,
            "ci_high": entry.high,
            "interval_of": entry.basis,
            "change": entry.change,
            "change_low": mark.change_low,
            "change_high": mark.change_high,
            "p": mark.p,
            "best": mark.best,
            "tie": mark.tie,
            "untested": mark.untested,
            "removal": entry.removal,
            "status": _status(entry),
            **_failures(entry),
            "seeds": entry.seeds,
            "attack_seeds": entry.attack_seeds,
            "failed": entry.failed,
            "attack_failed": entry.attack_failed,
            "not_run": entry.not_run,
            **{f"mean_{name}": float(value) for name, value in entry.cost.items()},
        }
        for entry, mark in zip(chosen, marks, strict=True)
    ]
    write_table(folder / f"{name}.parquet", pa.Table.from_pylist(records, schema=_SCHEMA))
    return text


def _failures(entry: TableEntry) -> dict[str, float | None]:
    """Return the columns on the share of runs that left the backdoor; None unless the entry shows it, of several."""
    share, low, high = (entry.failures() if entry.shows_backdoor else None) or (None, None, None)
    return {"runs_above_5": share, "runs_above_5_low": low, "runs_above_5_high": high}


def _status(entry: TableEntry) -> str:
    if entry.value is None:
        return FAILED if entry.failed else NOT_RUN
    return ATTACK_FAILED if entry.attack_failed else OK


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("part", "table", "row", "column", "metric")]
    + [(name, pa.float64()) for name in ("value", "ci_low", "ci_high")]
    + [("interval_of", pa.string())]
    + [(name, pa.float64()) for name in ("change", "change_low", "change_high", "p")]
    + [(name, pa.bool_()) for name in ("best", "tie", "untested")]
    + [(name, pa.string()) for name in ("removal", "status")]
    + [(name, pa.float64()) for name in ("runs_above_5", "runs_above_5_low", "runs_above_5_high")]
    + [(name, pa.int64()) for name in ("seeds", "attack_seeds", "failed", "attack_failed", "not_run")]
    + [(name, pa.float64()) for name in ("mean_seconds", "mean_tokens", "mean_peak_memory_bytes")]
)
