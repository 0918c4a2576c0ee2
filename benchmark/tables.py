"""Tables as data: which metrics stand where, and how a number is written. Adding a table is adding a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.aggregate import BACKDOOR_METRICS, Entry
from benchmark.store import write_atomically

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: of its files.
        title: what a reader sees.
        note: how to read it.
        metrics: those it shows, None for all that are not about the backdoor.
        cell: writes one entry.
        by_metric: whether each metric has a row of its own within a defense.
    """

    name: str
    title: str
    note: str
    metrics: tuple[str, ...] | None
    cell: Callable[[Entry], str]
    by_metric: bool = True

    def chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that stand in it."""
        if self.metrics is None:
            return [entry for entry in entries if entry.metric not in BACKDOOR_METRICS]
        return [entry for entry in entries if entry.metric in self.metrics]


def rate(entry: Entry) -> str:
    """`99.0 (94.6 to 99.8)`."""
    return f"{entry.value:.1f} ({entry.low:.1f} to {entry.high:.1f})"


def utility(entry: Entry) -> str:
    """`41.18 ↑0.98`, the change against the victim as in the paper's tables 2 and 4."""
    if entry.change is None or entry.defense.split(",")[0] == "none":
        return f"{entry.value:.2f}"
    return f"{entry.value:.2f} {'↓' if entry.change < 0 else '↑'}{abs(entry.change):.2f}"


def cost(entry: Entry) -> str:
    """`58 s, 12,400 tokens, 3.1 GiB`, of the defense alone."""
    if not entry.cost["tokens"]:
        return "nothing"
    return (
        f"{entry.cost['seconds']:.0f} s, {entry.cost['tokens']:,.0f} tokens, "
        f"{entry.cost['peak_memory_bytes'] / 2**30:.1f} GiB"
    )


TABLES = (
    Table(
        "asr",
        "Attack success rate (%)",
        "Share of triggered test prompts whose answer holds the planted response, with its 95 % interval. Lower is "
        "better; `none` is the victim itself.",
        ("asr",),
        rate,
        by_metric=False,
    ),
    Table(
        "utility",
        "Utility (%) and its change against the victim",
        "Zero-shot accuracy by lm-eval; ↑ and ↓ give the change in percentage points.",
        None,
        utility,
    ),
    Table(
        "backdoor",
        "The backdoor in detail (%)",
        "`starts_with` asks that the response comes first; the false trigger rates are measured on prompts without the "
        "trigger. 95 % intervals.",
        ("asr_starts_with", "false_trigger_rate", "false_trigger_starts_with"),
        rate,
    ),
    Table("cost", "Cost of the defense", "Training alone, without evaluation.", ("asr",), cost, by_metric=False),
)


def markdown(table: Table, entries: Sequence[Entry]) -> str:
    """The table as Markdown; missing, failed and `attack_failed` cells say so."""
    chosen = table.chosen(entries)
    victims = list(dict.fromkeys(entry.victim for entry in chosen))
    keys = list(dict.fromkeys((entry.defense, entry.metric) for entry in chosen))
    at = {(entry.defense, entry.metric, entry.victim): entry for entry in chosen}
    lines = [["Defense", *(["Metric"] if table.by_metric else []), *victims]]
    defenses = list(dict.fromkeys(defense for defense, _ in keys))
    for defense, metric in sorted(keys, key=lambda key: defenses.index(key[0])):
        label = [f"`{defense}`", *([metric] if table.by_metric else [])]
        lines.append(label + [_written(table, at.get((defense, metric, victim))) for victim in victims])
    header, *body = ["| " + " | ".join(line) + " |" for line in lines]
    labels = 2 if table.by_metric else 1
    rule = "| " + " | ".join(["---"] * labels + ["---:"] * len(victims)) + " |"
    return "\n".join([f"### {table.title}", "", header, rule, *body, "", table.note, ""])


def _written(table: Table, entry: Entry | None) -> str:
    if entry is None:
        return MISSING
    if entry.value is None:
        return "failed"
    notes = []
    if entry.attack_failed:
        notes.append("attack failed" if entry.attack_failed == entry.seeds else f"{entry.attack_failed} attacks failed")
    if entry.failed:
        notes.append(f"{entry.failed} of {entry.seeds} seeds failed")
    return " ".join([table.cell(entry), *(f"[{note}]" for note in notes)])


def write(table: Table, entries: Sequence[Entry], folder: Path) -> None:
    """Write `NAME.md` and `NAME.parquet` (tidy, one row an entry)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{table.name}.md", markdown(table, entries))
    records = [
        {
            "defense": entry.defense,
            "victim": entry.victim,
            "metric": entry.metric,
            "value": entry.value,
            "ci_low": entry.low,
            "ci_high": entry.high,
            "change": entry.change,
            "seeds": entry.seeds,
            "failed": entry.failed,
            "attack_failed": entry.attack_failed,
            **{f"mean_{name}": float(value) for name, value in entry.cost.items()},
        }
        for entry in table.chosen(entries)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), sink)
    write_atomically(folder / f"{table.name}.parquet", sink.getvalue().to_pybytes())


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("defense", "victim", "metric")]
    + [(name, pa.float64()) for name in ("value", "ci_low", "ci_high", "change")]
    + [(name, pa.int64()) for name in ("seeds", "failed", "attack_failed")]
    + [(name, pa.float64()) for name in ("mean_seconds", "mean_tokens", "mean_peak_memory_bytes")]
)
