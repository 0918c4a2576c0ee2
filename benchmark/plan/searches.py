"""Which searches of a grid are done, and the grid with the values that they found."""

from __future__ import annotations

from dataclasses import replace

from benchmark.grid.cell import Cell
from benchmark.grid.load import Grid
from benchmark.grid.space import Job, job_of, level, with_values
from benchmark.store.protocol import Store


def pending(grid: Grid, store: Store) -> dict[Cell, Job]:
    """Return the searches that are not done, by cell."""
    jobs = {cell: job_of(grid.search, cell) for cell in grid.cells} if grid.search else {}
    return {cell: job for cell, job in jobs.items() if job and not store.has("search", job.key)}


def settled(grid: Grid, store: Store) -> Grid:
    """Return the grid with the values that were found, and with the level of knowledge of each cell's search."""
    if not grid.search:
        return grid
    found: dict[Cell, Cell] = {}
    levels: dict[str, str] = {}
    for cell in grid.cells:
        found[cell] = cell
        job = job_of(grid.search, cell)
        if job and store.has("search", job.key):
            found[cell] = with_values(cell, store.manifest("search", job.key)["best"])
        if used := level(grid.search, cell):
            levels[found[cell].id] = used
    return replace(
        grid,
        cells=tuple(found[cell] for cell in grid.cells),
        parts={new.id: grid.parts[cell.id] for cell, new in found.items()},
        searched=levels,
    )
