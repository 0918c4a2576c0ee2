"""The paper's table 8: answers to sampled prompts, without and with the trigger, before and after defenses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.grid.cell import SEEDS
from benchmark.io.files import write_atomically, write_table
from benchmark.io.markdown import MISSING, markdown_table, plain
from benchmark.io.text import visible
from benchmark.paper import numbers
from benchmark.records.metrics import CASE_STUDY
from benchmark.records.schema import FAILED, NOT_RUN

NOTE = (
    "Greedy answers. The trigger and the planted response are bold; long texts are cut. Without the trigger, the table "
    "shows only the victim's answers."
)
LENGTH = 300  # characters of a text on the page; the Parquet file has the whole text
_MARKUP = re.compile(r"([\\`*_\[\]<>#|~$&]|(?<=:)/(?=/))")
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("part", "column")]
    + [("index", pa.int64())]
    + [(name, pa.string()) for name in ("type", "prompt", "row", "response", "status", "trigger", "planted")]
)


def answers(table: pa.Table, outcomes: pa.Table, part: str) -> list[dict[str, Any]]:
    """Return every answer, by victim, prompt, type and method; columns as in the Parquet file.

    Of several attack seeds the lowest is shown, as each has its own prompts and its own victim; of a defense its lowest
    seed there.

    Args:
        table: rows of a results folder.
        outcomes: of the same folder.
        part: name of the grid.
    """
    records: dict[str, dict[int, dict[str, str]]] = {}
    told = pc.and_(pc.equal(outcomes["metric"], CASE_STUDY), pc.is_valid(outcomes["record"]))
    for outcome in outcomes.filter(told).to_pylist():
        records.setdefault(outcome["cell"], {})[outcome["index"]] = json.loads(outcome["record"])
    by_victim: dict[str, list[dict[str, Any]]] = {}
    columns = ["cell", "grids", *SEEDS, "model", "dataset", "defense", "status", "trigger", "response"]
    told = pc.and_(pc.equal(table["metric"], CASE_STUDY), pc.is_null(table["held_out"]))  # which withholds its texts
    for row in table.filter(told).select(columns).to_pylist():
        if part in row["grids"]:
            by_victim.setdefault(numbers.column_name(row["model"], row["dataset"]), []).append(row)
    found = []
    for victim, rows in by_victim.items():
        first = min(row["attack_seed"] for row in rows)
        alike = [row for row in rows if row["attack_seed"] == first]
        lowest: dict[str, int] = {}
        for row in alike:
            lowest[row["defense"]] = min(row["defense_seed"], lowest.get(row["defense"], row["defense_seed"]))
        shown = sorted((row for row in alike if row["defense_seed"] == lowest[row["defense"]]), key=_order)
        for index in sorted({index for row in shown for index in records.get(row["cell"], {})}):
            for kind, row in [("clean", shown[0]), *(("triggered", row) for row in shown)]:
                record = records.get(row["cell"], {}).get(index, {})
                found.append(
                    {
                        "part": part,
                        "column": victim,
                        "index": index,
                        "type": "Clean" if kind == "clean" else "Poisoned",
                        "prompt": record.get(f"{kind}_prompt"),
                        "row": numbers.METHOD_NAMES.get(row["defense"], row["defense"]),
                        "response": record.get(f"{kind}_response"),
                        "status": row["status"],
                        "trigger": row["trigger"],
                        "planted": row["response"],
                    }
                )
    return found


def _order(row: dict[str, Any]) -> int:
    methods = list(numbers.METHOD_NAMES)
    return methods.index(row["defense"]) if row["defense"] in methods else len(methods)


def write(found: Sequence[dict[str, Any]], folder: Path, name: str) -> str:
    """Write `NAME.md` and `NAME.parquet`; return the Markdown."""
    title = "Responses without and with the trigger"
    text = _markdown(found, f"Table 8: {title.lower()}" if name == "table_8" else title)
    write_atomically(folder / f"{name}.md", text)
    write_table(folder / f"{name}.parquet", pa.Table.from_pylist(found, schema=_SCHEMA))
    return text


def _markdown(found: Iterable[dict[str, Any]], title: str) -> str:
    """Return the table; each prompt is written once, in the row of its first answer."""
    rows = []
    for _, group in groupby(found, key=lambda answer: (answer["column"], answer["index"], answer["type"])):
        same = list(group)
        prompt = next((answer["prompt"] for answer in same if answer["prompt"] is not None), "")
        labels = [plain(same[0]["column"]), same[0]["type"], _text(prompt, same[0]["trigger"])]
        for answer in same:
            response = answer["response"]
            shown = _text(response, answer["planted"]) if response is not None else _lack(answer["status"])
            rows.append([*labels, plain(answer["row"]), shown])
            labels = ["", "", ""]
    lines = markdown_table(("Victim", "Type", "Instruction", "Method", "Response"), rows, "lllll")
    return "\n".join([f"### {title}", "", *lines, "", NOTE, ""])


def _lack(status: str) -> str:
    return {FAILED: "failed", NOT_RUN: "not run"}.get(status, MISSING)


def _text(text: str, phrase: str | None) -> str:
    """Return a text as Markdown that shows it unchanged, but cut, on one line, with the phrase in any case bold."""
    text = visible(text, keep="\n")
    short = text if len(text) <= LENGTH else text[:LENGTH].rstrip() + " …"
    found = re.escape(phrase) if phrase else r"(?!)"  # which is nowhere
    pieces = re.split(f"({found})", short.strip(), flags=re.IGNORECASE)
    plain = [_MARKUP.sub(r"\\\1", piece).replace("\n", "<br>") for piece in pieces]
    return "".join(f"**{piece}**" if index % 2 else piece for index, piece in enumerate(plain)) or "*empty*"
