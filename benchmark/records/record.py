"""Record of a run, `run.json` in its results folder: exact command, code, time, and whether it is complete."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.grid import shipped
from benchmark.io.files import write_atomically
from sande import bounds
from sande.errors import UserError

NAME = "run.json"
THEN = " && "  # between the commands of results that several made


@dataclass(frozen=True, slots=True)
class Record:
    """Facts about the run behind some rows.

    Attributes:
        command: reproduces the rows; quoted for a shell, without options that change no number.
        code_version: version of the program.
        ended_at: time in UTC, ISO 8601.
        complete: whether every cell was measured or failed.
        recorded: False where the run wrote no record and the command was derived from the rows.
        left_out: cells of joined parts that the results do not have, in words; a text for each join that left some out.
    """

    command: str
    code_version: str = ""
    ended_at: str = ""
    complete: bool = True
    recorded: bool = True
    left_out: tuple[str, ...] = ()

    @property
    def is_joined(self) -> bool:
        """Return whether several commands made the rows, each of which may have used a store of its own."""
        return THEN in self.command


def command(grid: Path, assignments: Sequence[str] = (), only: Sequence[str] = (), scale: str | None = None) -> str:
    """Return the command that runs a grid, quoted for a shell, with the options that decide what is computed."""
    words = ["sande-bench", "run", str(shipped.plain(grid)), *(("--scale", scale) if scale else ())]
    for option, values in (("--set", assignments), ("--only", only)):
        words += [word for value in values for word in (option, value)]
    return shlex.join(words)


def derived(row: Mapping[str, Any]) -> Record:
    """Return a record derived from a row, where a run wrote none: from its grid, and a scale in the grid's name."""
    grid, ending = row["grid"], f"-{row['scale']}"
    if row["scale"] and grid.endswith(ending):
        made = command(Path("grids", f"{grid.removesuffix(ending)}.yaml"), scale=row["scale"])
    else:
        made = command(Path("grids", f"{grid}.yaml"))
    return Record(made, row["code_version"] or "", recorded=False)


def now(command: str, code_version: str, *, complete: bool) -> Record:
    """Return the record of a run that ends now."""
    ended = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Record(command, code_version, ended, complete)


def same(one: Record | None, other: Record) -> bool:
    """Return whether two records are equal except for the time."""
    return one is not None and replace(one, ended_at=other.ended_at) == other


def read(folder: Path) -> Record | None:
    """Return the record of a results folder; None where there is none, or a damaged one."""
    try:
        values = bounds.read_json(folder / NAME)
        found = Record(**values)
        found = replace(found, left_out=tuple(found.left_out))  # JSON has lists
    except (OSError, ValueError, TypeError, UserError):
        return None
    texts = found.command, found.code_version, found.ended_at, *found.left_out
    if not all(isinstance(text, str) and text.isprintable() for text in texts) or not found.command:
        return None
    return found


def write(record: Record, folder: Path) -> None:
    """Write the record of a results folder, whole or not at all."""
    values = asdict(record)
    if not record.left_out:
        del values["left_out"]  # earlier versions of this program, which lack the field, then read the record, too
    write_atomically(folder / NAME, json.dumps(values, indent=1) + "\n")
