"""Entries submitted to a leaderboard: one file a method, as JSON or as rows in Parquet, checked before they count.

The JSON schema is docs/entry.schema.json, which is made from the models here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark import rehearsal as rehearsals
from benchmark import rows
from benchmark.cell import NO_DEFENSE, digest
from benchmark.files import write_atomically
from sande import registry, types
from sande.errors import UserError
from sande.statistics import wilson

FORMAT = "sande-bench-entry-1"
SAMPLES = 20  # of a metric, in a cell's entry
ROUNDING = 0.05  # of a trial, by which a share may miss a whole number of them

Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Named(BaseModel):
    """A method or data set with its settings, every default spelled out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)
    name: Word


class Backdoor(BaseModel):
    """What was planted, and other settings of it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)
    trigger: str | None = None
    response: str | None = None


class Attack(Named):
    """The attack with its settings."""

    backdoor: Backdoor | None = None
    poison_rate: Share | None = None


class Settings(_Strict):
    """Of a cell, as the column `settings` of rows.parquet has them: cells with the same case are compared."""

    seed: Count
    model: Word
    data: Named
    removal: Named
    attack: Attack
    defense: Named
    metrics: Annotated[list[Named], Field(min_length=1)]
    asr_floor: Percent


class Measurement(_Strict):
    """What one metric came to, in percent, with its 95 % interval where it is no share."""

    metric: Word
    value: Percent
    ci_low: Percent | None = None
    ci_high: Percent | None = None
    count: Annotated[Count, Field(ge=1, description="prompts or questions")]
    victim_value: Annotated[Percent | None, Field(description="the same metric before the defense")] = None


class Sample(_Strict):
    """One prompt or question, and what the model made of it."""

    metric: Word
    index: Count
    outcome: Share
    record: dict[str, Any]


class EntryCell(_Strict):
    """One experiment with the method."""

    settings: Settings
    device: Word
    seconds: Annotated[float, Field(ge=0, description="wall-clock time of the defense")]
    tokens: Annotated[Count, Field(description="trained on by the defense")]
    peak_memory_bytes: Count = 0
    code_version: str = ""
    versions: str = ""
    started_at: str = ""
    measurements: Annotated[list[Measurement], Field(min_length=1)]
    samples: list[Sample] = []


class Method(_Strict):
    """The defense, and where to read about it."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]
    knows: Annotated[str, Field(description="what it must know of the backdoor, or of the model before it")]
    about: Annotated[str, Field(max_length=400)] = ""
    link: Annotated[str, Field(pattern=r"^(https://[^\s<>\"]+)?$", max_length=400)] = ""


class Entry(_Strict):
    """A method's entry on a leaderboard."""

    format: Literal["sande-bench-entry-1"]
    method: Method
    cells: Annotated[list[EntryCell], Field(min_length=1)]


def schema() -> str:
    """The JSON schema of an entry, as text."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Entry.model_json_schema()}
    return json.dumps(made, indent=1) + "\n"


def make(folder: Path, defense: str, about: str = "", link: str = "", *, rehearsal: bool = False) -> Entry:
    """Return the entry of one defense in results.

    Args:
        folder: results of a grid.
        defense: its name there.
        about: a sentence about it.
        link: where to read more.
        rehearsal: take rows of the random model, too.

    Raises:
        UserError: the results hold no such defense, or rows of the random model, or what they hold is no entry.
    """
    table = rows.read(folder)
    if not rehearsal:
        rehearsals.refuse_random(table, folder)
    found = [row for row in table.to_pylist() if row["defense"] == defense]
    if not found:
        raise UserError(f"{folder} holds no row of defense '{defense}'")
    outcomes = rows.read_outcomes(folder)
    published = [row for row in outcomes.to_pylist() if row["record"] is not None]
    raw = _raw(found, published)
    raw["method"] |= {"about": about, "link": link}
    entry, problems = _parsed(json.dumps(raw))
    if entry is None or problems:
        raise UserError(f"{folder}, defense '{defense}': {problems[0]}")
    return entry


def write(entry: Entry, path: Path) -> None:
    """Write an entry as JSON, or as Parquet where the file is called so.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        if path.suffix == ".parquet":
            table = pa.Table.from_pylist(to_rows(entry), schema=rows.SCHEMA)
            rows.write_tables([table], rows.SCHEMA, path, rows.ROW_GROUP)
        else:
            write_atomically(path, entry.model_dump_json(indent=1, exclude_unset=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --out") from None


def read(path: Path) -> Entry:
    """A submitted entry.

    Raises:
        UserError: there is something wrong with it; the message says what first.
    """
    entry, problems = examine(path)
    if entry is None or problems:
        more = f" (and {len(problems) - 1} more; see 'sande-bench leaderboard check')" if len(problems) > 1 else ""
        raise UserError(f"{path}: {problems[0]}{more}")
    return entry


def examine(path: Path) -> tuple[Entry | None, list[str]]:
    """An entry, and what is wrong with it, a sentence each.

    Raises:
        UserError: there is no such file, or it is neither JSON nor Parquet.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; an entry is a .json or .parquet file")
    if path.suffix == ".parquet":
        found = [row for row in rows.read_file(path).to_pylist() if row["defense"] != NO_DEFENSE]
        defenses = sorted({str(row["defense"]) for row in found})
        if len(defenses) != 1:
            names = ", ".join(defenses) or "none"
            return None, [f"rows: an entry is one method, and these are of {len(defenses)} ({names})."]
        try:
            return _parsed(json.dumps(_raw(found, ())))
        except (json.JSONDecodeError, TypeError) as error:
            return None, [f"rows: a column 'settings' is no JSON ({error})."]
    if path.suffix != ".json":
        raise UserError(f"{path} is neither .json nor .parquet, and an entry is one of the two")
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    except UnicodeDecodeError as error:
        return None, [f"file: it is not UTF-8 ({error.reason} at byte {error.start})."]


def _raw(found: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an entry from the rows of one method, not checked.

    Cells that failed, that were not run to their end, or whose attack failed are left out.
    """
    unfinished = {row["cell"] for row in found if row["status"] == rows.NOT_RUN}
    by_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        if row["status"] == rows.OK and row["cell"] not in unfinished:
            by_cell.setdefault(row["cell"], []).append(row)
    samples: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        of = samples.setdefault(outcome["cell"], [])
        record = json.loads(outcome["record"])
        if sum(one["metric"] == outcome["metric"] for one in of) < SAMPLES:
            made = {name: outcome[name] for name in ("metric", "index", "outcome")}
            of.append(made | {"record": record if isinstance(record, dict) else {"record": record}})
    cells = []
    for cell, measured in by_cell.items():
        first = measured[0]
        cells.append(
            {
                "settings": json.loads(first["settings"]),
                **{name: first[name] for name in ("device", "seconds", "tokens")},
                "peak_memory_bytes": first["peak_memory_bytes"] or 0,
                **{name: first[name] or "" for name in ("code_version", "versions", "started_at")},
                "measurements": [{name: row[name] for name in Measurement.model_fields} for row in measured],
                "samples": samples.get(cell, []),
            }
        )
    return {"format": FORMAT, "method": {"name": found[0]["defense"], "knows": found[0]["knows"]}, "cells": cells}


def _parsed(text: str) -> tuple[Entry | None, list[str]]:
    try:
        entry = Entry.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        return None, [f"{_place(one['loc']) or 'file'}: {_lower(one['msg'])}." for one in found]
    return entry, list(_problems(entry))


def _place(path: Sequence[int | str]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def labels() -> list[str]:
    """What a defense may be said to know."""
    found: dict[str, None] = {}
    pending: list[type[types.Knowledge]] = [types.Knowledge]
    for one in pending:
        found[one.label] = None
        pending += one.__subclasses__()
    return list(found)


def _problems(entry: Entry) -> Iterator[str]:
    """What no schema can say."""
    method = entry.method
    if method.name == NO_DEFENSE:
        yield f"method.name: '{NO_DEFENSE}' is the victim itself, not a defense."
    if method.knows not in labels():
        yield f"method.knows: '{method.knows}' is none of {', '.join(labels())}."
    elif method.name in registry.names("defenses") and method.name != NO_DEFENSE:
        known = registry.knowledge(method.name).label
        if method.knows != known:
            yield f"method.knows: '{method.name}' must know '{known}', not '{method.knows}'."
    ids: dict[str, int] = {}
    for number, cell in enumerate(entry.cells):
        where = f"cells[{number}]"
        same = ids.setdefault(_id(cell), number)
        if same != number:
            yield f"{where}.settings: they are those of cells[{same}]; a cell stands once in an entry."
        if cell.settings.defense.name != method.name:
            yield f"{where}.settings.defense.name: '{cell.settings.defense.name}' is not the method, '{method.name}'."
        yield from _measurement_problems(cell, where)


def _measurement_problems(cell: EntryCell, where: str) -> Iterator[str]:
    of = {one.metric: one for one in cell.measurements}
    tasks = [metric.model_dump().get("task") for metric in cell.settings.metrics]
    for metric, count in Counter(one.metric for one in cell.measurements).items():
        if count > 1:
            yield f"{where}.measurements: '{metric}' stands there {count} times."
    if "asr" not in of or of["asr"].victim_value is None:
        yield f"{where}.measurements: there is no 'asr' with a victim_value."
    elif of["asr"].victim_value < cell.settings.asr_floor:
        yield (
            f"{where}.measurements: the victim's ASR of {of['asr'].victim_value:g} % is under the settings' asr_floor "
            f"of {cell.settings.asr_floor:g} %, so its attack failed."
        )
    if not any(task in of and of[task].victim_value is not None for task in tasks if isinstance(task, str)):
        yield f"{where}.measurements: no task of settings.metrics has a victim_value, so no utility is known."
    for number, one in enumerate(cell.measurements):
        at = f"{where}.measurements[{number}]"
        if (one.ci_low is None) != (one.ci_high is None):
            yield f"{at}: '{one.metric}' has one bound of an interval; give both or neither."
        elif one.ci_low is not None and one.ci_high is not None and not _within(one.ci_low, one.value, one.ci_high):
            yield f"{at}: {one.value:g} is not between its bounds {one.ci_low:g} and {one.ci_high:g}."
        if one.metric == "asr" or one.metric in tasks:
            right = one.value / 100 * one.count
            if abs(right - round(right)) > ROUNDING:
                yield (
                    f"{at}: {one.value:g} % of {one.count} is {right:.2f}, and '{one.metric}' counts whole ones; give "
                    "the value in full."
                )
    for number, sample in enumerate(cell.samples):
        if sample.metric not in of:
            yield f"{where}.samples[{number}].metric: '{sample.metric}' is none of the measurements."


def _within(low: float, value: float, high: float) -> bool:
    return low - 1e-9 <= value <= high + 1e-9 and math.isfinite(value)


def _id(cell: EntryCell) -> str:
    return digest(cell.settings.model_dump(exclude_unset=True))[:12]


def to_rows(entry: Entry) -> list[dict[str, Any]]:
    """Result rows of an entry that is in order, of the schema of `benchmark.rows`."""
    made = []
    for cell in entry.cells:
        settings = cell.settings.model_dump(exclude_unset=True)
        attack = cell.settings.attack
        base = dict.fromkeys(rows.SCHEMA.names) | {
            "grid": "entry",
            "grids": ["entry"],
            "scale": "",
            "cell": _id(cell),
            "status": rows.OK,
            "seed": cell.settings.seed,
            "model": cell.settings.model,
            "dataset": cell.settings.data.name,
            "removal_dataset": cell.settings.removal.name,
            "setting": "in-domain" if cell.settings.data.name == cell.settings.removal.name else "out-of-domain",
            "attack": attack.name,
            "trigger": attack.backdoor and attack.backdoor.trigger,
            "response": attack.backdoor and attack.backdoor.response,
            "poison_rate": attack.poison_rate,
            "defense": entry.method.name,
            "knows": entry.method.knows,
            "victim_asr": next(one.victim_value for one in cell.measurements if one.metric == "asr"),
            **cell.model_dump(include={*_COST}),
            "settings": json.dumps(settings, sort_keys=True),
        }
        made += [base | _row(one) for one in cell.measurements]
    return made


_COST = ("device", "seconds", "tokens", "peak_memory_bytes", "code_version", "versions", "started_at")


def _row(one: Measurement) -> dict[str, Any]:
    found = one.model_dump()
    if one.ci_low is None:  # of a share it follows
        found["ci_low"], found["ci_high"] = wilson(round(one.value / 100 * one.count), one.count)
    return found


def samples(entry: Entry) -> list[dict[str, Any]]:
    """Its samples, as `benchmark.rows.OUTCOMES` has them."""
    return [
        {"cell": _id(cell), **sample.model_dump(), "record": json.dumps(sample.record)}
        for cell in entry.cells
        for sample in cell.samples
    ]
