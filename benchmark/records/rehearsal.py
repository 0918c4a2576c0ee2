"""Refuse rows of the random model, whose numbers mean nothing, except in a rehearsal."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from sande.errors import UserError
from sande.models.catalog import TINY

# First lines of a page of a rehearsal.
WARNING = (f"**A rehearsal: some of these rows are of the random model `{TINY}`, whose numbers mean nothing.**", "")
OPTION = ", or use --rehearsal to try the command"


def has_random(table: pa.Table) -> bool:
    """Return whether some rows are of the random model."""
    return TINY in pc.unique(table["model"]).to_pylist()


def refuse_random(table: pa.Table, folder: Path, instead: str = OPTION) -> None:
    """Refuse rows of the random model.

    Args:
        table: rows of results.
        folder: their folder.
        instead: alternative to "choose results of another model".

    Raises:
        UserError: some rows are of it.
    """
    if has_random(table):
        raise UserError(summary(folder, instead))


def summary(place: Path, instead: str = OPTION) -> str:
    """Return the error of a command that refuses rows of the random model."""
    return (
        f"{place}: these rows are of the random model '{TINY}', whose numbers mean nothing; choose results of another "
        f"model{instead}"
    )
