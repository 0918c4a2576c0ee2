"""Write the page and the Parquet file of a comparison with the paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.grid.cell import NO_DEFENSE
from benchmark.io.files import write_atomically
from benchmark.io.markdown import MISSING, markdown_table
from benchmark.paper import numbers, protocol
from benchmark.paper.compare import (
    AGREES,
    CHANGED,
    COMPARED,
    KEPT,
    REMOVED,
    VERDICTS,
    Compared,
    compare,
    kind_of_asr,
    kind_of_change,
)
from benchmark.paper.numbers import Reported
from benchmark.records import files
from benchmark.records.aggregate import Results, TableEntry
from benchmark.records.rehearsal import WARNING, has_random, refuse_random
from benchmark.records.trials import Outcomes
from sande.errors import UserError

NAME = "comparison"


def write(folder: Path, *, rehearsal: bool = False) -> str:
    """Write `comparison.md` and `comparison.parquet` into a results folder.

    Args:
        folder: results of a grid.
        rehearsal: accept rows of the random model; the page then says so.

    Returns:
        A summary as Markdown, for the terminal.

    Raises:
        UserError: the folder has no readable rows, or rows of the random model, or cannot be written.
    """
    table = files.read_rows(folder)
    if not rehearsal:
        refuse_random(table, folder)
    found = Results(table, Outcomes(files.read_outcomes(folder))).entries()
    compared = compare(found)
    warned = WARNING if has_random(table) else ()
    try:
        write_atomically(folder / f"{NAME}.md", _page(compared, found[0].row["grid"], warned))
        _write_parquet(compared, folder / f"{NAME}.parquet")
    except OSError as error:
        raise UserError(
            f"{folder}: the comparison cannot be written ({error.strerror}); make the folder writable"
        ) from None
    return "\n".join([*warned, *_summary(compared)])


def _page(compared: Sequence[Compared], grid: str, warned: Sequence[str] = ()) -> str:
    parts = [
        f"# `{grid}` compared with the paper",
        "",
        *warned,
        "Made by `sande-bench compare` from `rows.parquet` and `outcomes.parquet`; every number is also in "
        f"`{NAME}.parquet`.",
        "",
        *_summary(compared),
        "## How to read it",
        "",
        "- **Ours** is the mean over seeds with its 95 % interval: Wilson for one seed, Student-t over several and at "
        "least Wilson over all their trials. ↑ and ↓ give the change of a utility relative to the victim, with the "
        "95 % interval of a paired bootstrap over the questions.",
        "- **agrees**: the paper's number lies within our interval. If another model or other data replace the "
        "paper's, this applies to an ASR and to the change of a utility. The level of a utility is then not "
        "comparable, as another model has another level.",
        f"- **in kind**: outside our interval, but of the same kind. An ASR is removed (at most {REMOVED:g} %), kept "
        f"(at least {KEPT:g} %) or partly removed. A utility is lost or gained (at least {CHANGED:g} points) or kept.",
        "- **differs**: neither. A number that agrees can still differ in kind, if our interval is wide; the last "
        "column shows both kinds.",
        "- **attack failed**: our victim's ASR is under the floor of its grid, so its defenses cannot be judged. "
        "**not run**: this run has no number to compare.",
        "",
        *_stand_ins(compared),
        *_differing(compared),
        *(line for table in sorted({one.number.table for one in compared}) for line in _table(compared, table)),
        *_protocol(compared),
    ]
    return "\n".join(parts)


def _summary(compared: Sequence[Compared]) -> list[str]:
    judged = [one for one in compared if one.verdict in COMPARED]
    kinds = [one.in_kind for one in judged if one.in_kind is not None]
    agree = sum(one.verdict == AGREES for one in judged)
    differing = len({made.path for one in compared for made in one.deviations})
    tables = sorted({one.number.table for one in compared})
    lines = [_counts(str(table), [one for one in compared if one.number.table == table]) for table in tables]
    lines.append(_counts("all", compared))
    return [
        f"Of the {len(compared)} numbers that the paper reports, {len(judged)} are compared: {agree} lie within our "
        f"interval, and {sum(kinds)} of {len(kinds)} are of the same kind. The run differs from the paper's protocol "
        f"in {differing} setting{'' if differing == 1 else 's'}.",
        "",
        *markdown_table(("Table", "Numbers", *VERDICTS), lines, "r" * (2 + len(VERDICTS))),
        "",
    ]


def _counts(name: str, compared: Sequence[Compared]) -> tuple[str, ...]:
    counts = Counter(one.verdict for one in compared)
    return (name, str(len(compared)), *(str(counts[verdict]) for verdict in VERDICTS))


def _stand_ins(compared: Iterable[Compared]) -> list[str]:
    """Return a list of the paper's victims, each with ours that are compared with it."""
    ours_of: dict[str, dict[str, None]] = {}
    for one in compared:
        if one.entry is not None:
            ours = numbers.column_name(one.entry.row["model"], one.entry.row["dataset"])
            ours_of.setdefault(one.number.victim, {})[ours] = None
    lines = [
        f"- {victim}: {' and '.join(ours)}{'' if list(ours) == [victim] else ' instead'}"
        for victim, ours in ours_of.items()
    ]
    return ["## Victims", "", *(lines or ["None of the paper's."]), ""]


def _differing(compared: Iterable[Compared]) -> list[str]:
    """Return a list of the rates that differ in kind, which need an explanation."""
    lines = [
        f"- Table {one.number.table}: {', '.join(_line(one)[:2])}: paper {one.number.value:.2f}, ours {_ours(one)}"
        for one in compared
        if one.number.metric == "asr" and one.in_kind is False
    ]
    return ["## Attack success rates that differ in kind", "", *(lines or ["None."]), ""]


def _table(compared: Iterable[Compared], table: int) -> list[str]:
    chosen = [one for one in compared if one.number.table == table]
    title = [f"## Table {table}, {chosen[0].number.setting}", ""]
    if all(one.entry is None for one in chosen):
        return [*title, f"This run has none of its {len(chosen)} numbers.", ""]
    head = ("Method", "Victim", "Metric", "Paper (%)", "Ours (%)", "Verdict", "Kind: paper, ours")
    return [*title, *markdown_table(head, map(_line, chosen), "lllrrll"), ""]


def _line(one: Compared) -> tuple[str, ...]:
    number = one.number
    method = number.method
    if number.parrot_position is not None:
        method += f", parrot at {number.parrot_position}"
    victim = number.victim if number.table not in (5, 7) else f"{number.victim}, {number.trigger}"
    value = f"{number.value:.2f}"
    if number.metric != "asr" and number.defense != NO_DEFENSE:
        value += f" {_arrow(one.paper_change)}"
    return (method, victim, number.dataset, value, _ours(one), one.verdict, _kinds(one))


def _kinds(one: Compared) -> str:
    if one.in_kind is None or one.entry is None or one.entry.value is None:
        return ""
    if one.number.metric == "asr":
        return f"{kind_of_asr(one.number.value)}, {kind_of_asr(one.entry.value)}"
    return f"{kind_of_change(one.paper_change)}, {kind_of_change(one.entry.change or 0.0)}"


def _ours(one: Compared) -> str:
    if one.entry is None or one.entry.value is None:
        return MISSING
    text = f"{one.entry.value:.2f} ({one.low:.2f} to {one.high:.2f})"
    if one.number.metric != "asr" and not one.entry.is_victim and one.entry.change is not None:
        text += f" {_arrow(one.entry.change)}"
        if one.change_low is not None:
            text += f" ({one.change_low:+.2f} to {one.change_high:+.2f})"
    return text


def _arrow(points: float) -> str:
    return f"{'↓' if points < 0 else '↑'}{abs(points):.2f}"


def _protocol(compared: Sequence[Compared]) -> list[str]:
    """Return each deviation with its methods and victims, and the settings that the paper leaves open."""
    run = [one for one in compared if one.entry is not None]
    if not run:
        return []
    found: dict[tuple[str, str, str, str], list[Reported]] = {}
    opened: dict[tuple[str, str], list[Reported]] = {}
    for one in run:
        for made in one.deviations:
            ours = protocol.written(made.path, made.actual)
            found.setdefault((made.path, made.given.text(made.path), ours, made.given.source), []).append(one.number)
        for path, value in one.left_open.items():
            opened.setdefault((path, protocol.written(path, value)), []).append(one.number)
    scope = _scope([one.number for one in run])
    head = ("Setting", "Paper", "This run", "Where", "Source")
    lines = [
        (f"`{path}`", given, ours, scope(path, numbers), source)
        for (path, given, ours, source), numbers in sorted(found.items(), key=lambda item: _place(item[0][0]))
    ]
    seeds = sorted({one.entry.seeds for one in run if one.entry is not None})
    return [
        "## Deviations from the paper's protocol",
        "",
        *(markdown_table(head, lines, "lllll") if found else ["No setting differs."]),
        "",
        "Deviations of every run of this suite:",
        "",
        *(f"- {line}" for line in protocol.IN_EVERY_RUN),
        "",
        "Settings that the paper leaves open, with the values of this run:",
        "",
        f"- seeds: the paper reports single runs; here each number has {' or '.join(map(str, seeds))}",
        *(f"- `{path}`: {value} ({scope(path, numbers)})" for (path, value), numbers in sorted(opened.items())),
        "",
    ]


def _place(path: str) -> tuple[int, str]:
    """Sort key of settings: the order of the stages that they belong to."""
    return ("model", "data", "attack", "removal", "defense", "metrics").index(path.split(".")[0]), path


def _scope(run: Iterable[Reported]) -> Callable[[str, Sequence[Reported]], str]:
    """Return a function that names the methods and victims of some numbers, unless these are all that were run."""
    victims = {number.victim for number in run}

    def scope(path: str, numbers: Sequence[Reported]) -> str:
        methods = list(dict.fromkeys(number.method for number in numbers)) if path.startswith("defense.") else []
        of = list(dict.fromkeys(number.victim for number in numbers))
        named = [", ".join(names) for names in (methods, of if set(of) != victims else []) if names]
        return "; ".join(named) or "everywhere"

    return scope


def _write_parquet(compared: Iterable[Compared], path: Path) -> None:
    records = [
        {
            "table": one.number.table,
            "setting": one.number.setting,
            "defense": one.number.defense,
            "victim_model": one.number.victim_model,
            "victim_data": one.number.victim_data,
            "trigger": one.number.trigger,
            "response": one.number.response,
            "parrot_position": one.number.parrot_position,
            "metric": one.number.metric,
            "paper": one.number.value,
            "paper_change": one.paper_change,
            "verdict": one.verdict,
            "agrees": one.agrees,
            "in_kind": one.in_kind,
            **({} if one.entry is None else _ours_as_columns(one.entry)),
            "ci_low": one.low,
            "ci_high": one.high,
            "change_low": one.change_low,
            "change_high": one.change_high,
            "deviations": [made.path for made in one.deviations],
        }
        for one in compared
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _ours_as_columns(entry: TableEntry) -> dict[str, Any]:
    names = {"our_model": "model", "our_data": "dataset", "our_metric": "metric", "cell": "cell"}
    taken = {column: entry.row[name] for column, name in names.items()}
    return taken | {"value": entry.value, "change": entry.change, "seeds": entry.seeds}


_SCHEMA = pa.schema(
    [
        ("table", pa.int64()),
        ("setting", pa.string()),
        ("defense", pa.string()),
        ("victim_model", pa.string()),
        ("victim_data", pa.string()),
        ("trigger", pa.string()),
        ("response", pa.string()),
        ("parrot_position", pa.int64()),
        ("metric", pa.string()),
        ("paper", pa.float64()),  # percent
        ("paper_change", pa.float64()),  # against the reported victim, percentage points
        ("verdict", pa.string()),
        ("agrees", pa.bool_()),
        ("in_kind", pa.bool_()),
        ("our_model", pa.string()),
        ("our_data", pa.string()),
        ("our_metric", pa.string()),
        ("cell", pa.string()),  # of the first seed
        ("value", pa.float64()),  # percent, mean over seeds
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("change", pa.float64()),  # against our victim, percentage points
        ("change_low", pa.float64()),
        ("change_high", pa.float64()),
        ("seeds", pa.int64()),
        ("deviations", pa.list_(pa.string())),  # settings in which the cell is not the paper's
    ]
)
