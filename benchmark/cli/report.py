"""`report`, `compare`, `join` and `publish`: pages from the rows of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark import join as benchmark_join
from benchmark import publish as benchmark_publish
from benchmark.cli.app import echo, one_sentence, print_markdown
from benchmark.cli.options import RehearsalOption
from benchmark.records import published
from benchmark.records.folder import ResultsFolder, local_copies


@one_sentence
def report(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/quickstart, or their URI.")],
) -> None:
    """Write tables, figures and README.md again from the rows of a grid."""
    from benchmark.report import page

    published.refuse_published(folder)
    place = ResultsFolder(folder)
    for text in page.write(place.fetch()):
        print_markdown(text)
    place.send()
    echo(f"Report: {place.shown}/README.md")


@one_sentence
def compare(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/smollm2, or their URI.")],
    asr_margin: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Difference of ASR that counts as none, percentage points.")
    ] = 5.0,
    utility_margin: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Difference of utility that counts as none, percentage points.")
    ] = 2.0,
    rehearsal: RehearsalOption = False,
) -> None:
    """Compare a grid's numbers with the paper's, and list every deviation from its protocol."""
    from benchmark.paper import comparison_page
    from benchmark.paper.compare import Margins

    published.refuse_published(folder)
    place = ResultsFolder(folder)
    margins = Margins(asr_margin, utility_margin)
    print_markdown(comparison_page.write(place.fetch(), margins, rehearsal=rehearsal))
    place.send()
    echo(f"Comparison: {place.shown}/comparison.md")


@one_sentence
def join(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Results of parts of one grid, run with --only; folders or URIs (s3://…).", metavar="RESULTS…"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the joined results.")],
) -> None:
    """Make one results folder of a grid that ran in parts, on several machines or days."""
    with local_copies(places) as paths:
        texts = benchmark_join.join(paths, out)
    for text in texts:
        print_markdown(text)
    echo(f"Report: {out}/README.md")


@one_sentence
def publish(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="FOLDER")],
    to: Annotated[Path, typer.Option(help="Folder of published results.")] = published.FOLDER,
    replace: Annotated[bool, typer.Option("--replace", help="Replace results published under the same name.")] = False,
) -> None:
    """Publish complete results of a clean commit; of published ones, write the pages again from their rows."""
    echo(f"Published: {benchmark_publish.publish(folder, to, replace=replace) / 'README.md'}")
