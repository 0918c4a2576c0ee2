"""Tables of a report: format numbers, mark the best and significant ones, write Markdown and Parquet.

`benchmark.report.layouts` defines the tables and where a report shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmark.io.files import write_atomically, write_table
from benchmark.io.markdown import MISSING, markdown_table, plain
from benchmark.plan.failures import UNSCORABLE
from benchmark.records.aggregate import TableEntry
from benchmark.records.metrics import is_backdoor
from benchmark.records.recovery import is_twin
from benchmark.records.schema import ATTACK_FAILED, FAILED, NOT_RUN, OK
from benchmark.report.marks import Marks, judge, unjudged
from benchmark.report.notes import NO_SCORE, has_interval, label_of, note_of
from benchmark.report.short import MANY, Short, shortened, undefended
from sande.models.difference import MOST


@dataclass(frozen=True, slots=True)
class Table:
    """One table: rows of defenses (and metrics), columns of victims.

    With many victims, or several of a single defense, the rows are victims; of a single defense, the columns are
    metrics.

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
        repeats: True to name a defense on each of its rows, False on the first one alone, as in the paper. A victim is
            always named on its first row alone.
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
    mixed = len({e.basis == "model" for e, cell in zip(chosen, cells, strict=True) if has_interval(cell)}) > 1
    written = [_written(e, cell, mixed=mixed) for e, cell in zip(chosen, cells, strict=True)]
    victims = dict.fromkeys(e.victim for e in chosen)
    turned = not table.compares and _victims_are_rows(entries)
    apart = undefended(chosen) if len(victims) > MANY else set()
    if turned:
        apart &= {entry.victim for entry in chosen if is_twin(entry)}
    short = shortened(victims) if table.by_victim else Short({})
    pairs = list(zip(chosen, written, strict=True))
    lines = _lines(table, [(e, text) for e, text in pairs if e.victim not in apart], short.labels, turned=turned)
    if apart:
        lone = _lines(table, [(e, text) for e, text in pairs if e.victim in apart], short.labels, turned=True)
        lines += ["", "Victims without any defense:", "", *lone]
    note = " ".join([note_of(table, entries, chosen, written, marks, mixed=mixed), *short.sentences()])
    return "\n".join([f"### {table.title}", "", *lines, "", note, ""])


def _lines(
    table: Table, pairs: Sequence[tuple[TableEntry, str]], short: Mapping[str, str], *, turned: bool
) -> list[str]:
    """Return the lines of a table of entries, each with its text; its rows are victims if it is turned."""
    defenses, victims = (list(dict.fromkeys(getattr(e, name) for e, _ in pairs)) for name in ("defense", "victim"))
    if turned and len(defenses) == 1 and len(table.header) > 1:
        return _by_metric(table, pairs, {victim: label_of(short.get(victim, victim)) for victim in victims})
    first, second = (victims, defenses) if turned else (defenses, victims)
    at = {((e.victim, e.metric, e.defense) if turned else (e.defense, e.metric, e.victim)): text for e, text in pairs}
    body = []
    for label in first:
        for index, metric in enumerate(dict.fromkeys(metric for row, metric, _ in at if row == label)):
            name = label_of(short.get(label, label)) if index == 0 or (table.repeats and not turned) else ""
            names = [name, plain(table.metric(metric))]
            body.append(names[: len(table.header)] + [at.get((label, metric, column), MISSING) for column in second])
    header = ("Victim", *table.header[1:]) if turned else table.header
    heads = [label_of(short.get(name, name)) for name in second]
    return markdown_table([*header, *heads], body, "l" * len(header) + "r" * len(second))


def _by_metric(table: Table, pairs: Sequence[tuple[TableEntry, str]], victims: Mapping[str, str]) -> list[str]:
    """Return the lines of a table with a row for each victim, by its label, and a column for each metric."""
    at = {(entry.victim, entry.metric): text for entry, text in pairs}
    metrics = dict.fromkeys(metric for _, metric in at)
    body = [[label, *(at.get((victim, metric), MISSING) for metric in metrics)] for victim, label in victims.items()]
    heads = [plain(table.metric(metric)) for metric in metrics]
    return markdown_table(["Victim", *heads], body, "l" + "r" * len(heads))


def _victims_are_rows(entries: Iterable[TableEntry]) -> bool:
    """Return whether victims are the rows: by all entries of a page, so that its tables have one form."""
    defenses, victims = ({getattr(entry, name) for entry in entries} for name in ("defense", "victim"))
    return len(victims) > (1 if len(defenses) == 1 else max(MANY, len(defenses)))


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
    if mixed and entry.basis != "model" and has_interval(cell):
        seeds = (
            f"{entry.attack_seeds} seeds, " if entry.basis == "seeds" and entry.attack_seeds < len(entry.runs) else ""
        )
        cell += f", of {seeds}{len(entry.runs)} runs"
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
