"""Grids as functions: run one, and read its results as a data frame; docs/python_api.md shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark import pipeline
from benchmark.pipeline import Finished, Request
from benchmark.plan import retention
from benchmark.records import files
from benchmark.records.schema import OUTCOMES, SCHEMA
from sande.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["Finished", "results", "run"]


def run(
    grid: str | Path,
    /,
    *,
    assignments: Sequence[str] = (),
    only: Sequence[str] = (),
    scale: str | None = None,
    store: str | Path = pipeline.STORE,
    results: str | Path = pipeline.RESULTS,
    address: str | None = None,
    keep: str = retention.ALL,
    secret: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Finished:
    """Run what is missing of a grid, as `sande-bench run` does; write its rows and report.

    Args:
        grid: YAML file, or the name of one in `grids/`.
        assignments: `path.to.field=value`, for every cell.
        only: `path=value`, which cells.
        scale: instead of the grid's own.
        store: folder or URI of artifacts.
        results: folder or URI that gets a subfolder for the grid.
        address: of a running Ray cluster; None starts Ray here.
        keep: which models stay in the store: all, victims or none.
        secret: file of the secret of a held-out run.
        say: receives progress.

    Raises:
        UserError: the grid, a folder or the cluster cannot be used.
    """
    request = Request(
        Path(grid),
        str(store),
        str(results),
        address,
        tuple(assignments),
        tuple(only),
        scale,
        keep,
        Path(secret) if secret else None,
    )
    return pipeline.run(request, say, say)


def results(folder: str | Path, /, *, outcomes: bool = False) -> pd.DataFrame:
    """Return the result rows of a grid, one a cell and metric; `docs/results.md` explains the columns.

    Args:
        folder: of the results, such as `results/quickstart`.
        outcomes: return one row a prompt or question instead.

    Raises:
        UserError: the folder holds no results, or damaged ones.
    """
    file = Path(folder) / ("outcomes.parquet" if outcomes else "rows.parquet")
    if not file.is_file():
        raise UserError(f"{folder}: it holds no {file.name}; run the grid, or choose one of its results folders")
    table = files.read_outcomes(file.parent) if outcomes else files.read_rows(file.parent)
    frame: pd.DataFrame = table.cast(OUTCOMES if outcomes else SCHEMA).to_pandas()  # texts as texts, not as categories
    return frame
