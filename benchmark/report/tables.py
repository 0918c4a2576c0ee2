"""Tables of a report: format numbers, mark the best and significant ones, write Markdown and Parquet.

`benchmark.report.layouts` defines the tables and where a report shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.io.files import write_atomically
from benchmark.io.markdown import MISSING, markdown_table, table_cell
from benchmark.paper.numbers import column_name
from benchmark.records.aggregate import Pair, TableEntry
from benchmark.records.metrics import is_backdoor
from benchmark.records.schema import ATTACK_FAILED, FAILED, NOT_RUN, OK
from sande import registry
from sande.statistics import benjamini_hochberg, mcnemar, paired_bootstrap

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Marks:
    """Results of the tests on paired outcomes for one number of a table; None and False without outcomes.

    Attributes:
        change_low, change_high: 95 % interval of the change relative to the victim, percentage points.
        p: p-value of that change, adjusted over the table.
        best: True for the best defense of its column.
        tie: True for a defense than which the best is not significantly better.
    """

    change_low: float | None = None
    change_high: float | None = None
    p: float | None = None
    best: bool = False
    tie: bool = False

    @property
    def significant(self) -> bool:
        """True if the change is significant."""
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Table:
    """One table: rows of defenses (and metrics), columns of victims.

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

    def chosen(self, entries: Iterable[TableEntry]) -> list[TableEntry]:
        """Return the entries that the table has."""
        return [entry for entry in entries if self.shows(entry.metric) and (self.with_victim or not entry.is_victim)]


def rate(entry: TableEntry, marks: Marks, digits: int = 1) -> str:
    """Return `99.0 (94.6 to 99.8)`."""
    interval = "" if entry.low is None else f" ({entry.low:.1f} to {entry.high:.1f})"
    return _value(entry, marks, digits) + interval


def utility(entry: TableEntry, marks: Marks) -> str:
    """Return `41.18 ↑0.98`: the value and its change relative to the victim, as in the paper's tables 2 and 4."""
    return _value(entry, marks, digits=2) + _change(entry, marks)


def as_in_paper(entry: TableEntry, marks: Marks) -> str:
    """Return `0.13 (0.0 to 1.1)` for a rate, `41.18 ± 1.2 ↑0.98*` for utility: as in the paper, with intervals."""
    if is_backdoor(entry.metric):
        return rate(entry, marks, digits=2)
    interval = ""
    if entry.value is not None and entry.low is not None and entry.high is not None:
        interval = f" ± {max(entry.value - entry.low, entry.high - entry.value):.1f}"
    return _value(entry, marks, digits=2) + interval + _change(entry, marks)


def cost(entry: TableEntry, marks: Marks) -> str:
    """Return `58 s, 12,400 tokens, 3.1 GiB` of the defense's training, and passes for a token under a guard."""
    spent = (
        f"{entry.cost['seconds']:.0f} s, {entry.cost['tokens']:,.0f} tokens, "
        f"{entry.cost['peak_memory_bytes'] / 2**30:.1f} GiB"
        if entry.cost["tokens"]
        else "nothing"
    )
    passes = entry.row.get("decoding_models") or 1
    return spent if passes == 1 else f"{spent}; {passes} passes a token in every answer"


def _value(entry: TableEntry, marks: Marks, digits: int) -> str:
    text = f"{entry.value:.{digits}f}"
    return f"**{'≈' if marks.tie else ''}{text}**" if marks.best or marks.tie else text


def _change(entry: TableEntry, marks: Marks) -> str:
    if entry.change is None or entry.is_victim:
        return ""
    return f" {'↓' if entry.change < 0 else '↑'}{abs(entry.change):.2f}{'*' if marks.significant else ''}"


def judge(table: Table, chosen: Sequence[TableEntry]) -> list[Marks]:
    """Return the marks of each entry; they are empty unless the table compares and outcomes are known.

    McNemar's test on the outcomes of all seeds, paired by question, compares each entry with its victim and with the
    best of its column. P-values are adjusted over the table (Benjamini-Hochberg).
    """
    if not table.compares:
        return [Marks()] * len(chosen)
    best = _best(chosen)
    changes, rivals = {}, {}
    for index, entry in enumerate(chosen):
        if not entry.is_victim and (pair := entry.against(entry.of_victim)):
            changes[index] = pair
        if index in best and entry.value != best[index].value and (pair := entry.against(best[index].trials)):
            rivals[index] = pair
    change_p, rival_p = _adjusted(changes), _adjusted(rivals)
    marks = []
    for index, entry in enumerate(chosen):
        low, high = paired_bootstrap(*changes[index]) if index in changes else (None, None)
        is_best = index in best and entry.value == best[index].value
        marks.append(Marks(low, high, change_p.get(index), is_best, tie=rival_p.get(index, 0.0) >= SIGNIFICANT))
    return marks


def _best(chosen: Sequence[TableEntry]) -> dict[int, TableEntry]:
    """Return for each entry that competes the best of its column, if two or more compete.

    The victim does not compete, nor does an entry whose attack failed: the best one would have the weakest victim.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(chosen):
        if not entry.is_victim and not entry.attack_failed and entry.value is not None and entry.trials is not None:
            columns.setdefault((entry.victim, entry.metric), []).append(index)
    best: dict[int, TableEntry] = {}
    for (_, metric), indices in columns.items():
        if len(indices) > 1:
            sign = 1 if registry.metric_info(metric).higher_is_better else -1
            winner = max((chosen[index] for index in indices), key=lambda entry: sign * (entry.value or 0.0))
            best |= dict.fromkeys(indices, winner)
    return best


def _adjusted(pairs: Mapping[int, Pair]) -> dict[int, float]:
    p_values = [mcnemar(*([outcome == 1 for outcome in side] for side in pair)) for pair in pairs.values()]
    return dict(zip(pairs, benjamini_hochberg(p_values), strict=True))


def markdown(table: Table, entries: Sequence[TableEntry]) -> str:
    """Return the table as Markdown; cells that are missing, failed or not run say so, and cells with failed attacks."""
    return _markdown(table, entries, judge(table, table.chosen(entries)))


def _markdown(table: Table, entries: Sequence[TableEntry], marks: Sequence[Marks]) -> str:
    chosen = table.chosen(entries)
    columns = list(dict.fromkeys(entry.victim for entry in chosen))
    place = {label: index for index, label in enumerate(dict.fromkeys(entry.defense for entry in chosen))}
    keys = sorted(dict.fromkeys((e.defense, e.metric) for e in chosen), key=lambda key: place[key[0]])
    at = {(e.defense, e.metric, e.victim): _written(table, e, m) for e, m in zip(chosen, marks, strict=True)}
    body = []
    for index, (label, metric) in enumerate(keys):
        again = not table.repeats and index > 0 and keys[index - 1][0] == label
        names = ["" if again else _label(label), table.metric(metric)][: len(table.header)]
        body.append(names + [at.get((label, metric, column), MISSING) for column in columns])
    head, *rows = [[table_cell(text) for text in line] for line in ([*table.header, *columns], *body)]
    lines = markdown_table(head, rows, "l" * len(table.header) + "r" * len(columns))
    return "\n".join([f"### {table.title}", "", *lines, "", _note(table, entries, at.values()), ""])


def _label(defense: str) -> str:
    """Return a row label: our names of defenses as code, the paper's as words."""
    return f"`{defense}`" if defense.split(",")[0] in registry.names("defenses") else defense


def _note(table: Table, entries: Iterable[TableEntry], cells: Iterable[str]) -> str:
    """Return the note of the table, with its victim if no column names it, and the meaning of the marks in it."""
    sentences = [table.note]
    if not table.by_victim:
        sentences.append(_victim(table, [entry for entry in entries if table.shows(entry.metric)]))
    text = " ".join(cells)
    if "**" in text:
        sentences.append(
            "Bold: the best defense of a column for each task; with ≈: a defense that is not significantly worse."
        )
    if "*" in text.replace("**", ""):
        sentences.append("*: the change is significant.")
    if "*" in text:
        sentences.append("McNemar's test on paired outcomes, Benjamini-Hochberg over the table, 5 %.")
    return " ".join(sentences)


def _victim(table: Table, entries: Sequence[TableEntry]) -> str:
    """Return `The victim is Llama2-Alpaca.`, with its numbers if the table has no row of them."""
    names = dict.fromkeys(column_name(entry.row["model"], entry.row["dataset"]) for entry in entries)
    numbers = [
        f"{table.metric(entry.metric)} {entry.value:.2f}"
        for entry in entries
        if entry.is_victim and entry.value is not None and not table.with_victim
    ]
    return f"The victim is {' and '.join(names)}{': ' if numbers else ''}{', '.join(numbers)}."


def _written(table: Table, entry: TableEntry, marks: Marks) -> str:
    if entry.value is None:
        return "failed" if entry.failed else "not run"
    notes = []
    if entry.attack_failed:
        notes.append("attack failed" if entry.attack_failed == entry.seeds else f"{entry.attack_failed} attacks failed")
    if entry.failed:
        notes.append(f"{entry.failed} of {entry.seeds} seeds failed")
    if entry.not_run:
        notes.append(f"{entry.not_run} of {entry.seeds} seeds not run")
    return " ".join([table.cell(entry, marks), *(f"[{note}]" for note in notes)])


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
    marks = judge(table, chosen)
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
            "change": entry.change,
            "change_low": mark.change_low,
            "change_high": mark.change_high,
            "p": mark.p,
            "best": mark.best,
            "tie": mark.tie,
            "status": _status(entry),
            "seeds": entry.seeds,
            "failed": entry.failed,
            "attack_failed": entry.attack_failed,
            **{f"mean_{name}": float(value) for name, value in entry.cost.items()},
        }
        for entry, mark in zip(chosen, marks, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), sink)
    write_atomically(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    return text


def _status(entry: TableEntry) -> str:
    if entry.value is None:
        return FAILED if entry.failed else NOT_RUN
    return ATTACK_FAILED if entry.attack_failed else OK


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("part", "table", "row", "column", "metric")]
    + [(name, pa.float64()) for name in ("value", "ci_low", "ci_high", "change", "change_low", "change_high", "p")]
    + [("best", pa.bool_()), ("tie", pa.bool_()), ("status", pa.string())]
    + [(name, pa.int64()) for name in ("seeds", "failed", "attack_failed")]
    + [(name, pa.float64()) for name in ("mean_seconds", "mean_tokens", "mean_peak_memory_bytes")]
)
