"""`store`: list, verify and prune artifacts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.app import SOME_CELL_FAILED, echo, group, one_sentence, print_table
from benchmark.cli.options import StoreOption
from benchmark.io.units import counted

stores = group("Maintain a store: list its artifacts, verify them, prune those that no grid needs.")


@stores.command("list")
@one_sentence
def list_store(store: StoreOption = ".store") -> None:
    """List the artifacts of a store and their sizes."""
    from benchmark.plan import maintenance

    columns, lines = maintenance.listing(maintenance.opened(store))
    print_table(columns)
    for line in lines:
        echo(line)


@stores.command()
@one_sentence
def verify(store: StoreOption = ".store") -> None:
    """Read every artifact byte by byte and quarantine damaged ones; the next run that needs one makes it again."""
    from benchmark.plan import maintenance

    opened = maintenance.opened(store)
    listed = list(maintenance.artifacts(opened))
    counts = Counter({"damaged": 0})
    for finding in maintenance.verify(opened, listed):
        echo(finding.line)
        counts[finding.state] += 1
    found = ", ".join(f"{count} {state}" for state, count in counts.items())
    echo(f"{opened.location}: {counted(len(listed) - counts.total(), 'artifact')} in order, {found}")
    if counts["damaged"] or counts["unreadable"]:  # what another run is sending or has removed is no failure
        raise typer.Exit(SOME_CELL_FAILED)


@stores.command()
@one_sentence
def prune(
    grids: Annotated[list[Path], typer.Argument(help="Grids whose artifacts are kept.", metavar="GRID…")],
    store: StoreOption = ".store",
    scale: Annotated[list[str] | None, typer.Option(help="Keep what the grids need at this scale, too.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it, only print what would go.")] = False,
) -> None:
    """Remove artifacts that none of the grids needs, and those in quarantine."""
    from benchmark.io import units
    from benchmark.plan import maintenance

    opened = maintenance.opened(store)
    removal = maintenance.removable(grids, scale or (), opened)
    for line in maintenance.told(removal):
        echo(line)
    if yes:
        maintenance.remove(removal, opened)
    echo(f"{units.format_bytes(removal.total)} {'freed' if yes else 'would be freed; --yes does it'}")
