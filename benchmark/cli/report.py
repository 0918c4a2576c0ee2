"""`report`, `compare`, `join` and `publish`: pages from the rows of a grid; `repeat`: a second run of some cells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmark import join as benchmark_join
from benchmark import publish as benchmark_publish
from benchmark.cli.app import echo, interruptible, one_sentence, print_markdown, say, tell
from benchmark.cli.options import AddressOption, RehearsalOption, ResultsOption, StoreOption
from benchmark.execution import signals
from benchmark.grid.cell import MOST_SEED
from benchmark.records import published
from benchmark.records.folder import ResultsFolder, local_copies
from sande.errors import UserError

NOT_WITHIN = 1


@one_sentence
def report(
    folder: Annotated[
        str, typer.Argument(help="Results of a grid, such as results/quickstart, or their URI.", metavar="FOLDER")
    ],
) -> None:
    """Write tables, figures and README.md again from the rows of a grid."""
    from benchmark.report import page

    published.refuse_published(folder)
    place = ResultsFolder(folder)
    place.fetch()
    for text in page.write(place.folder):
        print_markdown(text)
    place.send()
    echo(f"Report: {place.shown}/README.md")


@one_sentence
def compare(
    folder: Annotated[
        str, typer.Argument(help="Results of a grid, such as results/smollm2, or their URI.", metavar="FOLDER")
    ],
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
    place.fetch()
    print_markdown(comparison_page.write(place.folder, margins, rehearsal=rehearsal))
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
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--leave-out",
            help="path=value: without the cells that have it, e.g. attack_seed=71; can be repeated, and cells must "
            "then have the values of all paths.",
        ),
    ] = None,
) -> None:
    """Make one results folder of a grid that ran in parts, on several machines or days."""
    with local_copies(places) as paths:
        texts = benchmark_join.join(paths, out, leave_out or (), places)
    for text in texts:
        print_markdown(text)
    echo(f"Report: {out}/README.md")


@one_sentence
def publish(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="FOLDER")],
    to: Annotated[Path, typer.Option(help="Folder of published results.")] = published.FOLDER,
    replace: Annotated[bool, typer.Option("--replace", help="Replace results published under the same name.")] = False,
    erratum: Annotated[
        str | None,
        typer.Option(help="What is wrong with published results; it opens their pages. An empty text removes it."),
    ] = None,
) -> None:
    """Publish complete results of a clean commit; of published ones, write the pages again from their rows."""
    there = os.path.dirname(os.path.realpath(folder))  # unlike `resolve`, it takes links in a circle
    if to != published.FOLDER and os.path.realpath(to) != there and published.is_published(folder):
        raise UserError(f"--to {to}: {folder} is published, and its pages are written where they are; remove --to")
    echo(f"Published: {benchmark_publish.publish(folder, to, replace=replace, erratum=erratum) / 'README.md'}")


@one_sentence
@interruptible
def repeat(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="FOLDER")],
    share: Annotated[float, typer.Option(help="Of the cells; at least one is run.")] = 0.03,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MOST_SEED, help="Seed that draws the cells; without it, a random one.")
    ] = None,
    store: StoreOption = ".store-repeat",
    results: ResultsOption = "results",
    address: AddressOption = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="resources.field=value; can be repeated.", metavar="ASSIGNMENT")
    ] = None,
) -> None:
    """Train random cells of a grid's results again, and compare; exit code 1 if a number is outside its interval."""
    from benchmark import repeat as benchmark_repeat

    published.refuse_published(results, "--results")
    done = benchmark_repeat.repeat(
        folder,
        say,
        share=share,
        seed=seed,
        store=store,
        results=results,
        address=address,
        assignments=assignments or (),
    )
    if done.interrupted:
        tell(f"Interrupted; the same command with --seed {done.seed} continues. Measured so far: {done.page}")
        raise typer.Exit(signals.exit_code())
    print_markdown(Path(done.page).read_text(encoding="utf-8"))
    echo(f"Comparison: {done.page}")
    if not done.holds:
        raise typer.Exit(NOT_WITHIN)
