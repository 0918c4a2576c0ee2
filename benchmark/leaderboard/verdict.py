"""The verdict on an entry: a small file beside it, which says what a second run of its cells found.

The verdict holds the hash of the entry, so an entry that is edited afterwards loses it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from benchmark.io.files import write_atomically
from benchmark.leaderboard.entry import Strict
from benchmark.records import mark
from benchmark.records.folder import VERDICT
from sande import bounds
from sande.errors import UserError

FORMAT: Final = "sande-bench-verdict-1"


class Compared(Strict):
    """One submitted number and that of the second run, in percent."""

    metric: str
    submitted: float
    measured: float
    count: Annotated[int, Field(description="prompts or questions of the second run")]
    within: Annotated[bool, Field(description="whether the second run lies within the submitted interval")]
    p: Annotated[float, Field(description="of the test that both are equal")]
    holds: bool


class Checked(Strict):
    """One cell that was run again."""

    number: Annotated[int, Field(description="its place in the entry, from 0")]
    numbers: list[Compared] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Return whether every number of the cell holds."""
        return not self.problems and bool(self.numbers) and all(one.holds for one in self.numbers)


class Verdict(Strict):
    """What a second run of some cells of an entry found."""

    format: Literal["sande-bench-verdict-1"]
    entry_sha256: str
    rule: str
    seed: Annotated[int | None, Field(description="that drew the cells; null for all")]
    of: Annotated[int, Field(description="cells of the entry")]
    cells: Annotated[list[Checked], Field(min_length=1)]
    code_version: str
    device: str
    versions: str
    checked_at: str

    @property
    def holds(self) -> bool:
        """Return whether every number that was checked holds."""
        return all(cell.holds for cell in self.cells)

    @property
    def summary(self) -> str:
        """Return the verdict in a sentence."""
        run = f"{len(self.cells)} of {self.of} cells run again on {self.checked_at[:10]}"
        if self.holds:
            return f"verified: {run}, every number holds"
        failed = sum(not cell.holds for cell in self.cells)
        return f"contradicted: {run}, {failed} of them with numbers that do not hold"


def place(entry: Path) -> Path:
    """Return the file of the verdict on an entry."""
    return entry.with_name(f"{entry.stem}{VERDICT}")


def sha256(entry: Path) -> str:
    """Return the hash of an entry's file."""
    return hashlib.sha256(bounds.read(entry)).hexdigest()


def write(verdict: Verdict, entry: Path) -> Path:
    """Write the verdict beside its entry; return its path.

    Raises:
        UserError: the file cannot be written.
    """
    path = place(entry)
    mark.claim_file(path, mark.has_keys("format", "entry_sha256"), "")
    try:
        write_atomically(path, verdict.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path}: the verdict cannot be written ({error.strerror}); make the folder writable") from None
    return path


def read(entry: Path) -> Verdict | None:
    """Return the verdict on an entry as it is now; None where there is none, or one on another version of the entry."""
    try:
        found = Verdict.model_validate_json(bounds.read(place(entry)))
    except (OSError, UserError, ValidationError):
        return None
    return found if found.entry_sha256 == sha256(entry) else None
