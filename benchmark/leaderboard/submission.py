"""Submissions to a leaderboard: one file per method, as JSON or as rows in Parquet, checked before they count.

An entry has the numbers of its method alone. Those of the victims are the board's, see `benchmark.leaderboard.victims`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE
from benchmark.grid.keys import digest
from benchmark.grid.levels import together
from benchmark.grid.prompt_format import PAPER
from benchmark.io.files import write_atomically
from benchmark.leaderboard.entry import FORMAT, FORMAT_1, EntryCell, Measurement, Submission
from benchmark.records import checks, files, mark, schema
from benchmark.records.rehearsal import refuse_random
from sande import bounds, registry, types
from sande.errors import UserError
from sande.statistics import wilson

SAMPLES = 20  # per metric of a cell
GRID = "entry"  # that the rows of an entry name
ROUNDING = 0.05  # trials by which a share may differ from a whole number of trials
ROUNDED = 0.05  # percentage points by which a bound of an interval may be rounded


def make(folder: Path, defense: str, about: str = "", link: str = "", *, rehearsal: bool = False) -> Submission:
    """Return the entry of one defense.

    Args:
        folder: results of a grid.
        defense: its name there.
        about: a sentence about it.
        link: address of a page about it.
        rehearsal: accept rows of the random model.

    Raises:
        UserError: the results hold no such defense, or rows of the random model, or do not make a valid entry.
    """
    table, outcomes = files.read_results(folder)
    if not rehearsal:
        refuse_random(table, folder)
    found = [row for row in checks.listed(table, folder) if row["defense"] == defense]
    if not found:
        raise UserError(f"{folder}: no row of defense '{defense}'; choose one that the grid ran")
    published = [row for row in outcomes.to_pylist() if row["record"] is not None]
    raw = _raw(found, published)
    raw["method"] |= {"about": about, "link": link}
    entry, problems = _parsed(json.dumps(raw))
    if entry is None or problems:
        raise UserError(f"{folder}, defense '{defense}': {problems[0]}")
    return entry


def write(entry: Submission, path: Path) -> None:
    """Write an entry as JSON, or as Parquet if the file has that suffix.

    Raises:
        UserError: the file is another's, or cannot be written.
    """
    ours = _is_entry if path.suffix == ".parquet" else mark.has_keys("format", "method")
    mark.claim_file(path, ours, "--out")
    try:
        if path.suffix == ".parquet":
            table = pa.Table.from_pylist(to_rows(entry), schema=schema.SCHEMA)
            files.write_tables([table], schema.SCHEMA, path, schema.ROW_GROUP)
        else:
            write_atomically(path, entry.model_dump_json(indent=1, exclude_unset=True) + "\n")
    except OSError as error:
        raise UserError(f"{path}: the file cannot be written ({error.strerror}); choose another --out") from None


def _is_entry(path: Path) -> bool:
    """Return whether a file has the rows of an entry; the rows of results name their grid."""
    try:
        return path.is_file() and files.read_file(path)["grid"].unique().to_pylist() == [GRID]
    except UserError:
        return False


def read(path: Path) -> Submission:
    """Return a valid entry.

    Raises:
        UserError: the entry has problems; the message names the first.
    """
    entry, problems = examine(path)
    if entry is None or problems:
        more = f" (and {len(problems) - 1} more; see 'sande-bench leaderboard check')" if len(problems) > 1 else ""
        raise UserError(f"{path}: {problems[0]}{more}")
    return entry


def examine(path: Path) -> tuple[Submission | None, list[str]]:
    """Return an entry, if it can be parsed, and its problems, one sentence each.

    Raises:
        UserError: there is no such file, or it cannot be read, or it is neither JSON nor Parquet.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; choose the .json or .parquet file of an entry")
    if path.suffix == ".parquet":
        found = [row for row in checks.listed(files.read_file(path), path) if row["defense"] != NO_DEFENSE]
        defenses = sorted({str(row["defense"]) for row in found})
        if len(defenses) != 1:
            names = ", ".join(defenses) or "none"
            return None, [f"rows: they are of {len(defenses)} methods ({names}); use the rows of one method."]
        try:
            return _parsed(json.dumps(_raw(found, ())))
        except (json.JSONDecodeError, TypeError) as error:
            return None, [f"rows: column 'settings' is not JSON ({error})."]
    if path.suffix != ".json":
        raise UserError(f"{path}: not a .json or .parquet file; choose the file of an entry")
    try:
        return _parsed(bounds.read(path).decode())
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}); make it readable") from None
    except UnicodeDecodeError as error:
        return None, [f"file: it is not UTF-8 ({error.reason} at byte {error.start})."]


def _raw(found: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an unchecked entry from the rows of one method.

    Cells that failed, that were interrupted, or whose attack failed are left out.
    """
    unfinished = {row["cell"] for row in found if row["status"] == schema.NOT_RUN}
    by_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        if row["status"] == schema.OK and row["cell"] not in unfinished:
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


def _parsed(text: str) -> tuple[Submission | None, list[str]]:
    try:
        entry = Submission.model_validate_json(_upgraded(text))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        return None, [f"{_place(one['loc']) or 'file'}: {_lower(one['msg'])}." for one in found]
    return entry, list(_problems(entry))


def _upgraded(text: str) -> str:
    """Return an entry of format 1 as one of format 2: one seed for attack and defense, without values of victims."""
    try:
        raw = json.loads(text)
        if raw["format"] != FORMAT_1:
            return text
        for cell in raw["cells"]:
            seed = cell["settings"].pop("seed")
            cell["settings"] |= {"attack_seed": seed, "defense_seed": seed}
            for measurement in cell["measurements"]:
                measurement.pop("victim_value", None)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return text  # the error of format 2 names the problem
    return json.dumps(raw | {"format": FORMAT})


def _place(path: Sequence[int | str]) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def labels() -> list[str]:
    """Return the levels of knowledge that a defense can declare."""
    found: dict[str, None] = {}
    pending: list[type[types.Knowledge]] = [types.Knowledge]
    for one in pending:
        found[one.label] = None
        pending += one.__subclasses__()
    return list(found)


def _problems(entry: Submission) -> Iterator[str]:
    """Yield the problems that a schema cannot express."""
    method = entry.method
    if method.name == NO_DEFENSE:
        yield f"method.name: '{NO_DEFENSE}' is the victim itself; use the name of a defense."
    searched = types.TriggerData.label  # a search by the trigger raises the level
    if method.knows not in {*labels(), *(together(label, searched) for label in labels())}:
        yield f"method.knows: '{method.knows}' is not a level of knowledge; use one of {', '.join(labels())}."
    elif method.name in registry.names("defenses") and method.name != NO_DEFENSE:
        known = registry.knowledge(method.name)
        for level in sorted({known.level(cell.settings.defense.model_dump()) for cell in entry.cells}):
            if method.knows not in (level, together(level, searched)):
                yield f"method.knows: '{method.name}' must know '{level}', not '{method.knows}'; use '{level}'."
    ids: dict[str, int] = {}
    for number, cell in enumerate(entry.cells):
        where = f"cells[{number}]"
        if odd := checks.odd_settings(cell.settings.model_dump(exclude_unset=True)):
            yield f"{where}.settings: {odd}; use the column 'settings' of rows.parquet."
        same = ids.setdefault(_id(cell), number)
        if same != number:
            yield f"{where}.settings: the same as those of cells[{same}]; remove one of the two cells."
        if cell.settings.defense.name != method.name:
            named = cell.settings.defense.name
            yield f"{where}.settings.defense.name: '{named}' is not the method; use '{method.name}'."
        yield from _measurement_problems(cell, where)


def _measurement_problems(cell: EntryCell, where: str) -> Iterator[str]:
    of = {one.metric: one for one in cell.measurements}
    tasks = [metric.model_dump().get("task") for metric in cell.settings.metrics]
    for metric, count in Counter(one.metric for one in cell.measurements).items():
        if count > 1:
            yield f"{where}.measurements: '{metric}' occurs {count} times; remove all but one."
    if "asr" not in of:
        yield f"{where}.measurements: no 'asr'; add it."
    if not any(task in of for task in tasks if isinstance(task, str)):
        yield f"{where}.measurements: no task of settings.metrics is measured; add one to measure the utility."
    for number, one in enumerate(cell.measurements):
        at = f"{where}.measurements[{number}]"
        if (one.ci_low is None) != (one.ci_high is None):
            yield f"{at}: '{one.metric}' has one bound of an interval; set both or neither."
        elif one.ci_low is not None and one.ci_high is not None and not _within(one.ci_low, one.value, one.ci_high):
            yield f"{at}: {one.value:g} is not between {one.ci_low:g} and {one.ci_high:g}; set bounds around the value."
        if one.metric == "asr" or one.metric in tasks:
            yield from _share_problems(one, at)
    for number, sample in enumerate(cell.samples):
        if sample.metric not in of:
            yield f"{where}.samples[{number}].metric: '{sample.metric}' is not measured; use a metric of measurements."


def _share_problems(one: Measurement, at: str) -> Iterator[str]:
    """Yield the problems of a share of prompts or questions: its trials, and bounds that no such count gives."""
    right = one.value / 100 * one.count
    if abs(right - round(right)) > ROUNDING:
        yield (
            f"{at}: {one.value:g} % of {one.count} is {right:.2f}, but '{one.metric}' counts whole prompts or "
            "questions; set the value with all its digits."
        )
    elif one.ci_low is not None and one.ci_high is not None:
        # Prompts of the same template make an interval wider than Wilson's, never narrower.
        low, high = wilson(round(right), one.count)
        if max(one.ci_low - low, high - one.ci_high) > ROUNDED + 1e-9:
            yield (
                f"{at}: {one.ci_low:g} to {one.ci_high:g} is narrower than Wilson's interval of {one.count} prompts or "
                f"questions, {low:.2f} to {high:.2f}; set wider bounds, or remove both."
            )


def _within(low: float, value: float, high: float) -> bool:
    return low - 1e-9 <= value <= high + 1e-9 and math.isfinite(value)


def _id(cell: EntryCell) -> str:
    return digest(_settings(cell))[:12]


def _settings(cell: EntryCell) -> dict[str, Any]:
    """Return the settings as rows have them, without a prompt format that is `paper`."""
    found = cell.settings.model_dump(exclude_unset=True)
    return {name: value for name, value in found.items() if (name, value) != (prompt_format.SETTING, PAPER)}


def to_rows(entry: Submission) -> list[dict[str, Any]]:
    """Return the result rows of a valid entry, with the schema of `benchmark.records.rows` and no value of a victim."""
    made = []
    for cell in entry.cells:
        settings = _settings(cell)
        attack = cell.settings.attack
        base = dict.fromkeys(schema.SCHEMA.names) | {
            "grid": GRID,
            "grids": [GRID],
            "scale": "",
            "cell": _id(cell),
            "status": schema.OK,
            "attack_seed": cell.settings.attack_seed,
            "defense_seed": cell.settings.defense_seed,
            "model": cell.settings.model,
            "prompt_format": prompt_format.named(settings)[prompt_format.SETTING],
            "dataset": cell.settings.data.name,
            "removal_dataset": cell.settings.removal.name,
            "setting": "in-domain" if cell.settings.data.name == cell.settings.removal.name else "out-of-domain",
            "attack": attack.name,
            "trigger": attack.backdoor and attack.backdoor.trigger,
            "response": attack.backdoor and attack.backdoor.response,
            "poison_rate": attack.poison_rate,
            "defense": entry.method.name,
            "knows": entry.method.knows,
            **cell.model_dump(include={*_COST}),
            "settings": json.dumps(settings, sort_keys=True),
        }
        made += [base | _row(one) for one in cell.measurements]
    return made


_COST = ("device", "seconds", "tokens", "peak_memory_bytes", "code_version", "versions", "started_at")


def _row(one: Measurement) -> dict[str, Any]:
    low, high = interval(one)
    return one.model_dump() | {"ci_low": low, "ci_high": high}


def interval(one: Measurement) -> tuple[float, float]:
    """Return the 95 % interval of a submitted number, in percent; that of a share follows from its count."""
    if one.ci_low is not None and one.ci_high is not None:
        return one.ci_low, one.ci_high
    return wilson(round(one.value / 100 * one.count), one.count)


def samples(entry: Submission) -> list[dict[str, Any]]:
    """Return the samples of an entry, with the schema `benchmark.records.schema.OUTCOMES`."""
    return [
        {"cell": _id(cell), **sample.model_dump(), "record": json.dumps(sample.record)}
        for cell in entry.cells
        for sample in cell.samples
    ]
