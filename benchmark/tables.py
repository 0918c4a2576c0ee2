"""Tables: how a number is written, what is marked, and how a table becomes Markdown and Parquet.

Which tables there are, and where they are shown, is in `benchmark.layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark import paper
from benchmark.aggregate import Entry, Pair, is_backdoor
from benchmark.files import write_atomically
from benchmark.rows import ATTACK_FAILED, FAILED, NOT_RUN, OK
from sande import registry
from sande.statistics import benjamini_hochberg, mcnemar, paired_bootstrap

MISSING = "–"
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Marks:
    """What paired outcomes say about one number of a table; None and False where they are not known.

    Attributes:
        change_low, change_high: 95 % interval of the change against the victim, percentage points.
        p: of that change, adjusted over the table.
        best: the best defense of its column.
        tie: another, than which the best is not significantly better.
    """

    change_low: float | None = None
    change_high: float | None = None
    p: float | None = None
    best: bool = False
    tie: bool = False

    @property
    def significant(self) -> bool:
        """Whether the change is."""
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Table:
    """One table: rows of defenses (and metrics), columns of victims.

    Attributes:
        name: of its files.
        title: what a reader sees.
        note: how to read it.
        shows: whether a metric stands in it.
        cell: writes one entry.
        header: of the row labels: the defense and, if each metric has a row of its own, the metric.
        metric: what a metric is called in it.
        compares: whether the best of each column, ties with it and significant changes are marked.
        with_victim: whether the victim has a row.
        by_victim: whether columns are victims; else the note names the victim.
        repeats: whether a defense is named on each of its rows, or on the first as in the paper.
    """

    name: str
    title: str
    note: str
    shows: Callable[[str], bool]
    cell: Callable[[Entry, Marks], str]
    header: tuple[str, ...] = ("Defense", "Metric")
    metric: Callable[[str], str] = str
    compares: bool = False
    with_victim: bool = True
    by_victim: bool = True
    repeats: bool = True

    def chosen(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries that stand in it."""
        return [entry for entry in entries if self.shows(entry.metric) and (self.with_victim or not entry.is_victim)]


def rate(entry: Entry, marks: Marks, digits: int = 1) -> str:
    """`99.0 (94.6 to 99.8)`."""
    interval = "" if entry.low is None else f" ({entry.low:.1f} to {entry.high:.1f})"
    return _value(entry, marks, digits) + interval


def utility(entry: Entry, marks: Marks) -> str:
    """`41.18 ↑0.98`, the change against the victim as in the paper's tables 2 and 4."""
    return _value(entry, marks, digits=2) + _change(entry, marks)


def as_in_paper(entry: Entry, marks: Marks) -> str:
    """`0.13 (0.0 to 1.1)` for a rate, `41.18 ± 1.2 ↑0.98*` for utility: the paper's numbers with what they lack."""
    if is_backdoor(entry.metric):
        return rate(entry, marks, digits=2)
    interval = ""
    if entry.value is not None and entry.low is not None and entry.high is not None:
        interval = f" ± {max(entry.value - entry.low, entry.high - entry.value):.1f}"
    return _value(entry, marks, digits=2) + interval + _change(entry, marks)


def cost(entry: Entry, marks: Marks) -> str:
    """`58 s, 12,400 tokens, 3.1 GiB`, of the defense alone."""
    if not entry.cost["tokens"]:
        return "nothing"
    return (
        f"{entry.cost['seconds']:.0f} s, {entry.cost['tokens']:,.0f} tokens, "
        f"{entry.cost['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


def _value(entry: Entry, marks: Marks, digits: int) -> str:
    text = f"{entry.value:.{digits}f}"
    return f"**{'≈' if marks.tie else ''}{text}**" if marks.best or marks.tie else text


def _change(entry: Entry, marks: Marks) -> str:
    if entry.change is None or entry.is_victim:
        return ""
    return f" {'↓' if entry.change < 0 else '↑'}{abs(entry.change):.2f}{'*' if marks.significant else ''}"


def judge(table: Table, chosen: Sequence[Entry]) -> list[Marks]:
    """The marks of each entry: all empty unless the table compares and outcomes are known.

    Changes are tested against the victim, and what might tie against the best of its column, both by McNemar's test on
    the outcomes of all seeds, paired by question; p-values are adjusted over the table (Benjamini-Hochberg).
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


def _best(chosen: Sequence[Entry]) -> dict[int, Entry]:
    """For each entry that competes, the best of its column: the lowest rate, or the highest utility, of two or more.

    Neither the victim competes, nor what is measured on a failed attack: there the best would be the weakest victim's.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(chosen):
        if not entry.is_victim and not entry.attack_failed and entry.value is not None and entry.trials is not None:
            columns.setdefault((entry.victim, entry.metric), []).append(index)
    best: dict[int, Entry] = {}
    for (_, metric), indices in columns.items():
        if len(indices) > 1:
            sign = -1 if is_backdoor(metric) else 1
            winner = max((chosen[index] for index in indices), key=lambda entry: sign * (entry.value or 0.0))
            best |= dict.fromkeys(indices, winner)
    return best


def _adjusted(pairs: Mapping[int, Pair]) -> dict[int, float]:
    p_values = [mcnemar(*([outcome == 1 for outcome in side] for side in pair)) for pair in pairs.values()]
    return dict(zip(pairs, benjamini_hochberg(p_values), strict=True))


def markdown(table: Table, entries: Sequence[Entry]) -> str:
    """The table as Markdown; missing, failed, `not_run` and `attack_failed` cells say so."""
    return _markdown(table, entries, judge(table, table.chosen(entries)))


def _markdown(table: Table, entries: Sequence[Entry], marks: Sequence[Marks]) -> str:
    chosen = table.chosen(entries)
    columns = list(dict.fromkeys(entry.victim for entry in chosen))
    place = {label: index for index, label in enumerate(dict.fromkeys(entry.defense for entry in chosen))}
    keys = sorted(dict.fromkeys((e.defense, e.metric) for e in chosen), key=lambda key: place[key[0]])
    at = {(e.defense, e.metric, e.victim): _written(table, e, m) for e, m in zip(chosen, marks, strict=True)}
    lines = [[*table.header, *columns]]
    for index, (label, metric) in enumerate(keys):
        again = not table.repeats and index > 0 and keys[index - 1][0] == label
        names = ["" if again else _label(label), table.metric(metric)][: len(table.header)]
        lines.append(names + [at.get((label, metric, column), MISSING) for column in columns])
    header, *body = ["| " + " | ".join(_cell(text) for text in line) + " |" for line in lines]
    rule = "| " + " | ".join(["---"] * len(table.header) + ["---:"] * len(columns)) + " |"
    return "\n".join([f"### {table.title}", "", header, rule, *body, "", _note(table, entries, at.values()), ""])


def _label(defense: str) -> str:
    """Our names are code; the paper's are words."""
    return f"`{defense}`" if defense.split(",")[0] in registry.names("defenses") else defense


def code(line: str) -> str:
    """One line of any text as Markdown code, out of which nothing in it gets, in a table's cell either."""
    line = _cell(line)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    padding = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _note(table: Table, entries: Iterable[Entry], cells: Iterable[str]) -> str:
    """The table's, its victim where no column says it, and what the marks mean that there are."""
    sentences = [table.note]
    if not table.by_victim:
        sentences.append(_victim(table, [entry for entry in entries if table.shows(entry.metric)]))
    text = " ".join(cells)
    if "**" in text:
        sentences.append(
            "Bold: the best defense of a column, task by task, and with ≈ whatever it is not significantly better than."
        )
    if "*" in text.replace("**", ""):
        sentences.append("*: the change is significant.")
    if "*" in text:
        sentences.append("McNemar's test on paired outcomes, Benjamini-Hochberg over the table, 5 %.")
    return " ".join(sentences)


def _victim(table: Table, entries: Sequence[Entry]) -> str:
    """`The victim is Llama2-Alpaca.`, with its numbers if they have no row."""
    names = dict.fromkeys(paper.column_name(entry.row["model"], entry.row["dataset"]) for entry in entries)
    numbers = [
        f"{table.metric(entry.metric)} {entry.value:.2f}"
        for entry in entries
        if entry.is_victim and entry.value is not None and not table.with_victim
    ]
    return f"The victim is {' and '.join(names)}{': ' if numbers else ''}{', '.join(numbers)}."


def _written(table: Table, entry: Entry, marks: Marks) -> str:
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


def write(table: Table, entries: Sequence[Entry], folder: Path, part: str, name: str) -> str:
    """Write `NAME.md` and `NAME.parquet` (tidy, one row an entry).

    Args:
        table: which.
        entries: of one grid.
        folder: for the files.
        part: the grid.
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


def _status(entry: Entry) -> str:
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
