"""`leaderboard`: rank defenses, and make or check entries for submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from benchmark.cli.app import USERS_MISTAKE, group, one_sentence, print_markdown, tell
from benchmark.cli.options import RehearsalOption
from benchmark.leaderboard.board import MARGIN
from benchmark.records import published


class _RankUnlessNamed(TyperGroup):
    """A group in which `leaderboard RESULTS…` is `leaderboard rank RESULTS…`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["rank", *args]
        return super().parse_args(ctx, args)


boards = group("Rank the defenses of any results. 'rank' can be left out: leaderboard RESULTS…", _RankUnlessNamed)


@boards.command()
@one_sentence
def rank(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Results of grids, such as results/quickstart, and files of entries.", metavar="RESULTS…"),
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
    print_markdown(write_leaderboard(paths, out, html, margin=margin, rehearsal=rehearsal))
    for page in ([out / "leaderboard.md"] if out else []) + ([html / "index.html"] if html else []):
        typer.echo(f"Leaderboard: {page}")


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
            typer.echo(
                f"{file}: in order; {entry.method.name}, must know: {entry.method.knows}, {len(entry.cells)} cells"
            )
        wrong |= bool(problems)
    if wrong:
        raise typer.Exit(USERS_MISTAKE)


@boards.command()
@one_sentence
def entry(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="RESULTS")],
    defense: Annotated[str, typer.Argument(help="Name of the defense in them.")],
    out: Annotated[Path | None, typer.Option(help="File, .json or .parquet; without it, DEFENSE.json.")] = None,
    about: Annotated[str, typer.Option(help="One sentence about the defense.")] = "",
    link: Annotated[str, typer.Option(help="Where to read more, https://…")] = "",
    rehearsal: RehearsalOption = False,
) -> None:
    """Write the entry of one defense, for submission."""
    from benchmark.leaderboard import submission

    out = out or Path(f"{defense}.json")
    submission.write(submission.make(folder, defense, about, link, rehearsal=rehearsal), out)
    typer.echo(f"Entry: {out}")
