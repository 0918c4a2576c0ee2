"""`leaderboard`: rank defenses; make, check and verify entries; secrets of the held-out track."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from benchmark.cli.app import (
    USERS_MISTAKE,
    echo,
    group,
    interruptible,
    one_sentence,
    print_markdown,
    print_table,
    say,
    tell,
)
from benchmark.cli.options import AddressOption, RehearsalOption, ResultsOption, StoreOption
from benchmark.execution import signals
from benchmark.io.units import counted
from benchmark.leaderboard.board import MARGIN
from benchmark.records import published
from benchmark.records.folder import local_copies

if TYPE_CHECKING:
    from benchmark.leaderboard.verdict import Verdict

NOT_HELD = 1
OF_RESULTS = "choose the file with which the results were made"


class _RankUnlessNamed(TyperGroup):
    """A group in which `leaderboard RESULTS…` is `leaderboard rank RESULTS…`, but for a misspelled command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help") and not self._misspelled(args[0]):
            args = ["rank", *args]
        return super().parse_args(ctx, args)

    def _misspelled(self, word: str) -> bool:
        """Return whether it is a word without punctuation, which names no file or folder and is near to a command."""
        return word.isalpha() and not os.path.lexists(word) and bool(difflib.get_close_matches(word, self.commands))


boards = group("Rank the defenses of any results. 'rank' can be left out: leaderboard RESULTS…", _RankUnlessNamed)


@boards.command()
@one_sentence
def rank(
    places: Annotated[
        list[str],
        typer.Argument(
            help="Results of grids, such as results/quickstart, and files of entries; folders, files or URIs (s3://…).",
            metavar="RESULTS…",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for leaderboard.md, .parquet, .png and .svg; without it and --html, results/leaderboard."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Folder for pages to open in a browser, without a server or a network.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Points of utility that a ranked defense may lose.", min=0, max=100)
    ] = MARGIN,
    rehearsal: RehearsalOption = False,
) -> None:
    """Rank the defenses of any results within each level of knowledge, by the upper bound of their ASR."""
    from benchmark.leaderboard.write import write as write_leaderboard

    if not out and not html:
        out = Path("results/leaderboard")
    for place, option in ((out, "--out"), (html, "--html")):
        if place:
            published.refuse_published(place, option)
    with local_copies(places) as paths:
        page = write_leaderboard(paths, out, html, margin=margin, rehearsal=rehearsal, named=places)
    print_markdown(page)
    for made in ([out / "leaderboard.md"] if out else []) + ([html / "index.html"] if html else []):
        echo(f"Leaderboard: {made}")


@boards.command()
@one_sentence
def check(
    files: Annotated[list[Path], typer.Argument(help="Entries, .json or .parquet.", metavar="FILE…")],
) -> None:
    """Check entries; print one sentence for each problem, with its place."""
    from benchmark.leaderboard import submission

    wrong = False
    for file in files:
        entry, problems = submission.examine(file)
        for problem in problems:
            tell(f"{file}: {problem}")
        if entry and not problems:
            cells = counted(len(entry.cells), "cell")
            echo(f"{file}: in order; {entry.method.name}, must know: {entry.method.knows}, {cells}")
        wrong |= bool(problems)
    if wrong:
        raise typer.Exit(USERS_MISTAKE)


@boards.command()
@one_sentence
def entry(
    place: Annotated[
        str, typer.Argument(help="Results of a grid, such as results/quickstart, or their URI.", metavar="RESULTS")
    ],
    defense: Annotated[str, typer.Argument(help="Name of the defense in them.", metavar="DEFENSE")],
    out: Annotated[Path | None, typer.Option(help="File, .json or .parquet; without it, DEFENSE.json.")] = None,
    about: Annotated[str, typer.Option(help="One sentence about the defense.")] = "",
    link: Annotated[str, typer.Option(help="Where to read more, https://…")] = "",
    rehearsal: RehearsalOption = False,
) -> None:
    """Write the entry of one defense, for submission."""
    from benchmark.leaderboard import submission

    out = out or Path(f"{defense}.json")
    published.refuse_published(out, "--out")
    with local_copies([place]) as (folder,):
        submission.write(submission.make(folder, defense, about, link, rehearsal=rehearsal), out)
    echo(f"Entry: {out}")


@boards.command()
@one_sentence
@interruptible
def verify(
    file: Annotated[Path, typer.Argument(help="An entry, .json or .parquet.", metavar="ENTRY")],
    sample: Annotated[int, typer.Option(min=1, help="How many of its cells to run, drawn at random.", metavar="N")] = 3,
    every: Annotated[bool, typer.Option("--all", help="Run all of its cells.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed that draws the cells; without it, a random one.")
    ] = None,
    store: StoreOption = ".store",
    results: ResultsOption = "results",
    address: AddressOption = None,
) -> None:
    """Run cells of an entry again, and write beside it which of its numbers hold; exit code 1 if one does not."""
    from benchmark import again
    from benchmark.leaderboard import verdict
    from benchmark.leaderboard import verify as verification

    published.refuse_published(results, "--results")
    published.refuse_published(file, "ENTRY")
    again.check_store(store)
    count = None if every else sample
    done = verification.verify(file, say, sample=count, seed=seed, store=store, results=results, address=address)
    if done.verdict is None:
        tell(f"Interrupted; the same command with --seed {done.seed} continues. Measured so far: {done.page}")
        raise typer.Exit(signals.exit_code())
    print_table(_compared(done.verdict))
    for cell in done.verdict.cells:
        for problem in cell.problems:
            echo(f"cells[{cell.number}]: {problem}")
    echo(f"{done.verdict.summary}{'' if every else f' (--seed {done.seed})'}")
    echo(done.verdict.rule)
    echo(f"Verdict: {verdict.place(file)}")
    if not done.verdict.holds:
        raise typer.Exit(NOT_HELD)


def _compared(made: Verdict) -> dict[str, list[str]]:
    """Return the numbers of a verdict as a table, by head."""
    numbers = [(cell.number, one) for cell in made.cells for one in cell.numbers]
    return {
        "Cell": [f"cells[{number}]" for number, _ in numbers],
        "Metric": [one.metric for _, one in numbers],
        "Submitted": [f"{one.submitted:.2f}" for _, one in numbers],
        "Second run": [f"{one.measured:.2f}" for _, one in numbers],
        "Count": [str(one.count) for _, one in numbers],
        "In its interval": ["yes" if one.within else "no" for _, one in numbers],
        "p": [f"{one.p:.2g}" for _, one in numbers],
        "Holds": ["yes" if one.holds else "NO" for _, one in numbers],
    }


@boards.command()
@one_sentence
def secret(file: Annotated[Path, typer.Argument(help="A new file, outside the results.", metavar="FILE")]) -> None:
    """Make the secret of a held-out track, for 'run --secret'; print its commitment, to be published first."""
    from benchmark.held_out import secret as secrets

    made = secrets.make(file)
    echo(f"Secret: {file}; keep it private until the track ends")
    echo(f"Commitment: {made.commitment}")


@boards.command()
@one_sentence
def reveal(
    folder: Annotated[Path, typer.Argument(help="Results of a held-out run.", metavar="RESULTS")],
    file: Annotated[Path, typer.Argument(help="The published secret.", metavar="SECRET")],
) -> None:
    """Check held-out results against the published secret, and print what it drew for each cell."""
    from benchmark.held_out import draw, mask
    from benchmark.held_out import secret as secrets
    from benchmark.records.files import read_rows

    found = mask.revealed(read_rows(folder).to_pylist(), secrets.read(file, OF_RESULTS))
    print_table(
        {
            "Cell": list(found),
            "Attack": [one["attack"]["name"] for one in found.values()],
            "Defense": [one["defense"]["name"] for one in found.values()],
            "Triggers": ["; ".join(draw.triggers(one)) for one in found.values()],
            "Response": [one["attack"]["backdoor"]["response"] for one in found.values()],
            "Attack seed": [str(one["attack_seed"]) for one in found.values()],
            "Defense seed": [str(one["defense_seed"]) for one in found.values()],
        }
    )
    echo(f"{folder}: {counted(len(found), 'cell')} of this secret, and none of another")
