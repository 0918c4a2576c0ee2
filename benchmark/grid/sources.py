"""What a cell reads: its models, and each data set with what identifies its content.

A name alone does not say it: `alpaca` is a file in `SANDE_DATA_DIR` on one machine, and pinned files of the Hub on
another.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmark.grid.cell import NO_DEFENSE, Cell
from sande import registry
from sande.data import datasets

ROWS, QUESTIONS, PAIRS = "rows", "questions", "preference pairs"  # kinds of data sets
SEPARATOR = "; "  # between the sources of a cell

_KINDS = {ROWS: datasets.EXAMPLES, QUESTIONS: datasets.QUESTIONS, PAIRS: datasets.PREFERENCES}


def models(cell: Cell) -> Iterator[str]:
    """Yield the name of each model that a cell reads: its own, and those that its defense names."""
    yield cell.model
    if cell.defense.models:
        yield from cell.defense.config.models


def data_sets(cell: Cell) -> Iterator[tuple[str, str]]:
    """Yield name and kind of each data set that a cell reads; some more than once."""
    yield cell.data.name, ROWS
    for metric in cell.metrics:
        for name in registry.entry("metrics", metric.name).reads(metric.config):
            yield name, QUESTIONS
        for name in metric.reads_rows:
            yield name, ROWS
    if cell.defense.name == NO_DEFENSE:
        return
    if cell.defense.pairs is None:
        yield cell.removal.name, ROWS
    else:
        yield cell.defense.config.preferences.name, PAIRS
    for name in cell.defense.own_rows:
        yield name, ROWS


def fingerprint(name: str, kind: str) -> str:
    """Return a text that identifies the content of a data set, see `sande.data.datasets.fingerprint`."""
    return datasets.fingerprint(name, _KINDS[kind])


def written(cell: Cell) -> str:
    """Return the model and the data sets of a cell with what identifies them, each once, sorted."""
    found = {f"{kind} {name}: {fingerprint(name, kind)}" for name, kind in data_sets(cell)}
    return SEPARATOR.join([f"model {cell.model}: {cell.content.model}", *sorted(found)])
