"""`report`, `compare` and `publish`: pages from the rows of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import publishing
from benchmark.cli.app import one_sentence, print_markdown
from benchmark.cli.options import RehearsalOption
from benchmark.remote import Results


@one_sentence
def report(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/quickstart, or their URI.")],
) -> None:
    """Write tables, figures and README.md again from the rows of a grid."""
    from benchmark import report as reports

    publishing.refuse_published(folder)
    place = Results(folder)
    for text in reports.write(place.fetch()):
        print_markdown(text)
    place.send()
    typer.echo(f"Report: {place.shown}/README.md")


@one_sentence
def compare(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/smollm2, or their URI.")],
    rehearsal: RehearsalOption = False,
) -> None:
    """Compare a grid's numbers with the paper's, and list every deviation from its protocol."""
    from benchmark import compare as comparison

    publishing.refuse_published(folder)
    place = Results(folder)
    print_markdown(comparison.write(place.fetch(), rehearsal=rehearsal))
    place.send()
    typer.echo(f"Comparison: {place.shown}/comparison.md")


@one_sentence
def publish(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="FOLDER")],
    to: Annotated[Path, typer.Option(help="Folder of published results.")] = publishing.FOLDER,
    replace: Annotated[bool, typer.Option("--replace", help="Replace results published under the same name.")] = False,
) -> None:
    """Publish complete results of a clean commit; of published ones, write the pages again from their rows."""
    typer.echo(f"Published: {publishing.publish(folder, to, replace=replace) / 'README.md'}")
