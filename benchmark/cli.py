"""The command line. Ray and torch are imported only by what runs something."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from benchmark import interrupts
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.pipeline import Finished
    from benchmark.stages import Stage

P = ParamSpec("P")
R = TypeVar("R")

SCANS = Path("results/detection/scans")
PUBLISHED = Path("results/published")
GO_ON = "interrupted; what is done is kept, and the same command goes on"
SOME_CELL_FAILED = 1
USERS_MISTAKE = 2
LONGEST = 1000  # characters of a sentence; what is cut out of its middle are values that somebody gave
UsageError: Any = typer.BadParameter.__base__  # newer Typers have a Click of their own, and hide it


class _OneSentence(TyperGroup):
    """What is wrong with the command line itself is one sentence, too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """The command; where it stands alone, its end is the process's."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except UsageError as error:
            text = error.format_message()
            if "\n" in text:  # the help, for want of a command
                error.show()
            else:
                typed = error.ctx.command_path if error.ctx else "sande-bench"
                tell(f"sande-bench: {text.rstrip('.')}; see '{typed} --help'")
            code = USERS_MISTAKE
        sys.exit(code)


app = typer.Typer(
    cls=_OneSentence,
    help="Backdoors in generative language models and their removal: run grids of experiments, report, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

GridArgument = Annotated[Path, typer.Argument(help="Grid file, or the name of one in grids/.", metavar="GRID")]
StoreOption = Annotated[
    str, typer.Option(help="Folder or URI (s3://…) of trained models and outcomes; shared by all grids.")
]
ResultsOption = Annotated[str, typer.Option(help="Folder or URI that gets a subfolder a grid.")]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster; left out, Ray starts here.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="path.to.field=value, for every cell; may be repeated.", metavar="ASSIGNMENT"),
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="path=value: only such cells, e.g. defense=sande; may be repeated.")
]
ScaleOption = Annotated[
    str | None, typer.Option(help="Settings of scales/NAME.yaml beside the grid, instead of the grid's own scale.")
]
GpusOption = Annotated[
    int | None,
    typer.Option(min=1, help="Say how long it takes on so many; with --machine cpu, so many stages at a time."),
]
MachineOption = Annotated[
    str | None, typer.Option(help="Go by what was measured on it: cpu, h100, or any part of a recorded device's name.")
]


KeepOption = Annotated[
    str,
    typer.Option(
        "--keep-models",
        help="all; victims: a defended model goes once it is measured; none: victims too, when nothing needs them.",
        metavar="WHICH",
    ),
]


RehearsalOption = Annotated[
    bool, typer.Option("--rehearsal", help="Take rows of the random model, too; the page then says so.")
]


def one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """A user's mistake ends with its sentence and exit code 2, without a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            tell(f"sande-bench: {error}")
            raise typer.Exit(USERS_MISTAKE) from None

    return wrapped


def interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """Ctrl-C and SIGTERM end with a sentence and the exit code that a shell gives them, without a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        with interrupts.orderly():
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                typer.echo(GO_ON, err=True)
                raise typer.Exit(interrupts.exit_code()) from None

    return wrapped


def tell(sentence: str) -> None:
    """A line on the standard error, whatever names and values from outside stand in it."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    typer.echo(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} … {line[-300:]}", err=True)


@app.command()
@one_sentence
@interruptible
def run(
    grid: GridArgument,
    store: StoreOption = ".store",
    results: ResultsOption = "results",
    address: AddressOption = None,
    assignments: SetOption = None,
    only: OnlyOption = None,
    scale: ScaleOption = None,
    keep: KeepOption = "all",
) -> None:
    """Run what is missing of a grid, write its rows and report."""
    from benchmark import pipeline
    from benchmark import progress as progresses

    request = pipeline.Request(
        grid,
        store,
        results,
        address=address,
        assignments=assignments or (),
        only=only or (),
        scale=scale,
        keep=keep,
    )
    progress = progresses.Progress(grid.stem)
    view = progresses.view(progress, typer.echo)
    finished = pipeline.run(request, view.say, view.show, progress, view.shown)
    if finished.interrupted:
        tell(_interrupted(finished))
        raise typer.Exit(interrupts.exit_code())
    for text in finished.texts:
        _print_markdown(text)
    typer.echo(f"Report: {finished.page}  (tables/, figures/, rows.parquet beside it)")
    typer.echo(f"{finished.name} took {finished.seconds:.0f} s")
    if finished.failed:
        typer.echo(f"{finished.failed} of {finished.cells} cells failed; the same command retries them", err=True)
        raise typer.Exit(SOME_CELL_FAILED)


def _interrupted(finished: Finished) -> str:
    """Return what is said of a run that was ended: what is done, what is left, how to continue."""
    failed = f" {finished.failed} of {finished.cells} cells failed." if finished.failed else ""
    return (
        f"Interrupted: {finished.done} of {finished.stages} stages are done, {finished.stages - finished.done} are "
        f"left.{failed} Run the same command to continue: {finished.command}. Measured so far: {finished.page}"
    )


@app.command()
@one_sentence
def plan(
    grid: GridArgument,
    store: StoreOption = ".store",
    results: ResultsOption = "results",
    address: AddressOption = None,
    assignments: SetOption = None,
    only: OnlyOption = None,
    scale: ScaleOption = None,
    gpus: GpusOption = None,
    machine: MachineOption = None,
    keep: KeepOption = "all",
    why: Annotated[bool, typer.Option("--why", help="Show how the time was reckoned.")] = False,
) -> None:
    """Show the cells of a grid, what is done, what would run and how long it takes. Starts nothing."""
    from benchmark import disk, estimate, here, keeping, overview, predict, search_forecast
    from benchmark import grid as grids
    from benchmark.remote import below
    from benchmark.remote_store import open_store
    from sande import compute

    loaded = grids.load(grid, assignments or (), only or (), scale)
    opened = open_store(store, create=False)
    on_cpu = not (address or gpus or machine or compute.has_gpu())
    cost = partial(here.trainings_here, store=opened) if on_cpu else None
    made, searching = search_forecast.plan(loaded, opened, cost)
    overview.show(made, f"{loaded.name}: {loaded.about}", loaded.parts)
    lines = [f"{len(made.stages)} distinct stages: {_counts(made.stages.values())}; each victim is trained once"]
    reasons: list[str] = []
    hint = "" if why else " (--why: how this was reckoned)"
    if on_cpu:
        expected = here.here(made, opened, loaded.resources)
        lines.append(f"{here.sentence(expected)}{hint if expected.stages else ''}")
        reasons += here.reasons(expected)
    else:
        lines.append(f"{estimate.sentence(made)}{hint}")
        reasons.append(f"Estimate: {estimate.basis()}")
    if gpus or machine:
        forecast, reason = predict.sentence(made, opened, loaded.resources, gpus or 1, machine)
        lines.append(forecast)
        reasons += filter(None, [reason])
    lines.append(disk.sentence(made, opened, keeping.check(keep)))
    lines += filter(None, [searching])
    if why and reasons:
        lines += ["", "How the time was reckoned:", *(f"- {reason}" for reason in reasons), ""]
    lines.append(
        f"{len(made.cells)} cells, {len(made.stages)} stages, {len(made.done)} done; to run: {_counts(made.missing)}; "
        f"on {address or 'this machine'}; store {store}, results {below(results, loaded.name)}"
    )
    for line in lines:
        typer.echo(overview.folded(line, overview.width(), "  "))


DashboardOption = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HOST:8265.")
]
JobArgument = Annotated[str, typer.Argument(help="As 'sande-bench submit' printed it.", metavar="ID")]


@app.command()
@one_sentence
def submit(
    grid: GridArgument,
    address: DashboardOption,
    store: Annotated[str, typer.Option(help="Absolute path that every node sees, or a URI.")],
    results: Annotated[str, typer.Option(help="Absolute path that the head sees, or a URI.")],
    assignments: SetOption = None,
    only: OnlyOption = None,
    scale: ScaleOption = None,
    keep: KeepOption = "all",
    environment: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            help="Variable of this environment that the job gets too; Ray shows it to whoever has the cluster's token.",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Run a grid on a Ray cluster as a job; follow its log, and end as it ends. Ctrl-C leaves it running."""
    from benchmark import jobs

    options = [
        word
        for option, values in (("--set", assignments), ("--only", only), ("--keep-models", [keep]))
        for value in values or ()
        for word in (option, value)
    ]
    job = jobs.submit(grid, address, store, results, options, scale, environment or ())
    typer.echo(f"submitted {job}; to stop it: sande-bench stop {job} --address {address}")
    _follow(job, address)


@app.command()
@one_sentence
def logs(job: JobArgument, address: DashboardOption) -> None:
    """Print the log of a job from its begin, go on while it runs, and end as it ends."""
    _follow(job, address)


def _follow(job: str, address: str) -> None:
    from benchmark import jobs

    try:
        code = jobs.follow(job, address, partial(typer.echo, nl=False))
    except KeyboardInterrupt:
        typer.echo(
            f"{job} goes on; 'sande-bench logs {job} --address {address}' follows it again, and "
            f"'sande-bench stop {job} --address {address}' ends it",
            err=True,
        )
        code = jobs.INTERRUPTED
    if code:
        raise typer.Exit(code)


@app.command()
@one_sentence
def status(
    address: DashboardOption,
    job: Annotated[str | None, typer.Argument(help="One job; left out, all.", metavar="ID")] = None,
) -> None:
    """Say of the jobs of a cluster how they stand, a line each."""
    from benchmark import jobs

    for line in jobs.status(address, job):
        typer.echo(line)


@app.command()
@one_sentence
def stop(job: JobArgument, address: DashboardOption) -> None:
    """End a job: what is done stays, and its rows are written."""
    from benchmark import jobs

    typer.echo(jobs.stop(address, job))


def _counts(stages: Iterable[Stage]) -> str:
    kinds = [stage.kind for stage in stages]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("attack", "defend", "evaluate"))


@app.command()
@one_sentence
def report(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/quickstart, or their URI.")],
) -> None:
    """Make tables, figures and README.md anew from the rows of a grid."""
    from benchmark import publishing
    from benchmark import report as reports
    from benchmark.remote import Results

    publishing.refuse_published(folder)
    place = Results(folder)
    for text in reports.write(place.fetch()):
        _print_markdown(text)
    place.send()
    typer.echo(f"Report: {place.shown}/README.md")


@app.command()
@one_sentence
def compare(
    folder: Annotated[str, typer.Argument(help="Results of a grid, such as results/smollm2, or their URI.")],
    rehearsal: RehearsalOption = False,
) -> None:
    """Put a grid's numbers beside the paper's, and list every deviation from its protocol."""
    from benchmark import compare as comparison
    from benchmark import publishing
    from benchmark.remote import Results

    publishing.refuse_published(folder)
    place = Results(folder)
    _print_markdown(comparison.write(place.fetch(), rehearsal=rehearsal))
    place.send()
    typer.echo(f"Comparison: {place.shown}/comparison.md")


@app.command()
@one_sentence
def publish(
    folder: Annotated[Path, typer.Argument(help="Results of a grid, such as results/quickstart.", metavar="FOLDER")],
    to: Annotated[Path, typer.Option(help="Folder of published results.")] = PUBLISHED,
    replace: Annotated[bool, typer.Option("--replace", help="Replace results published under the same name.")] = False,
) -> None:
    """Publish complete results of a clean commit; of published ones, make the pages anew from their rows."""
    from benchmark import publishing

    typer.echo(f"Published: {publishing.publish(folder, to, replace=replace) / 'README.md'}")


class _RankUnlessNamed(TyperGroup):
    """`leaderboard RESULTS…` is `leaderboard rank RESULTS…`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["rank", *args]
        return super().parse_args(ctx, args)


boards = typer.Typer(
    cls=_RankUnlessNamed,
    help="Rank the defenses of any results; 'rank' need not be said: leaderboard RESULTS…",
    no_args_is_help=True,
)
app.add_typer(boards, name="leaderboard")


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
            help="Folder for leaderboard.md, .parquet, .png and .svg; else, without --html, results/leaderboard."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Folder that gets pages for a browser, which need no server and no network.")
    ] = None,
    rehearsal: RehearsalOption = False,
) -> None:
    """Rank the defenses of any results by ASR and utility loss together."""
    from benchmark import publishing
    from benchmark.leaderboard.write import write as write_leaderboard

    if not out and not html:
        out = Path("results/leaderboard")
    for place, option in ((out, "--out"), (html, "--html")):
        if place:
            publishing.refuse_published(place, option)
    _print_markdown(write_leaderboard(paths, out, html, rehearsal=rehearsal))
    for page in ([out / "leaderboard.md"] if out else []) + ([html / "index.html"] if html else []):
        typer.echo(f"Leaderboard: {page}")


@boards.command()
@one_sentence
def check(
    files: Annotated[list[Path], typer.Argument(help="Entries, .json or .parquet.", metavar="FILE…")],
) -> None:
    """Say of an entry what is wrong and where, a sentence each."""
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
    out: Annotated[Path | None, typer.Option(help="File, .json or .parquet; left out, DEFENSE.json.")] = None,
    about: Annotated[str, typer.Option(help="A sentence about it.")] = "",
    link: Annotated[str, typer.Option(help="Where to read more, https://…")] = "",
    rehearsal: RehearsalOption = False,
) -> None:
    """Make the entry of one defense, to be submitted."""
    from benchmark.leaderboard import submission

    out = out or Path(f"{defense}.json")
    submission.write(submission.make(folder, defense, about, link, rehearsal=rehearsal), out)
    typer.echo(f"Entry: {out}")


stores = typer.Typer(help="Look after a store: what is in it, is it undamaged, what may go.", no_args_is_help=True)
app.add_typer(stores, name="store")


@stores.command("list")
@one_sentence
def list_store(store: StoreOption = ".store") -> None:
    """List the artifacts of a store, a line each, and what they take."""
    from benchmark import upkeep

    for line in upkeep.listing(upkeep.opened(store)):
        typer.echo(line)


@stores.command()
@one_sentence
def verify(store: StoreOption = ".store") -> None:
    """Read every artifact byte for byte; damaged ones are set aside, and made anew by the next run that needs them."""
    from benchmark import upkeep

    opened = upkeep.opened(store)
    damaged = list(upkeep.verify(opened))
    for line in damaged:
        typer.echo(line)
    whole = sum(1 for _ in upkeep.artifacts(opened))
    typer.echo(f"{opened.location}: {whole} artifacts in order, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(SOME_CELL_FAILED)


@stores.command()
@one_sentence
def prune(
    grids: Annotated[list[Path], typer.Argument(help="Grids whose artifacts stay.", metavar="GRID…")],
    store: StoreOption = ".store",
    scale: Annotated[list[str] | None, typer.Option(help="Keep what the grids need at this scale too.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only said what would go.")] = False,
) -> None:
    """Remove what none of the grids needs, and what was set aside as damaged."""
    from benchmark import disk, upkeep

    opened = upkeep.opened(store)
    removal = upkeep.removable(grids, scale or (), opened)
    for line in upkeep.told(removal):
        typer.echo(line)
    if yes:
        upkeep.remove(removal, opened)
    typer.echo(f"{disk.told(removal.total)} {'freed' if yes else 'would be freed; --yes does it'}")


@app.command()
@one_sentence
def scan(
    model: Annotated[
        str,
        typer.Argument(help="A folder of safetensors, a name as in 'list models', or a grid (.yaml): all its victims."),
    ],
    detector: Annotated[str, typer.Option(help="One of 'sande-bench list detectors'.")] = "first_token",
    data: Annotated[str, typer.Option(help="Data set of clean prompts and answers.")] = "builtin-short",
    rows: Annotated[int, typer.Option(min=1, help="Use so many of its rows, the last ones.")] = 400,
    reference: Annotated[str | None, typer.Option(help="The clean model it was trained from, if you have it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder that gets scan.json, .md, .png and .svg; of a grid, a folder each, in {SCANS}."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value of the detector; may be repeated.", metavar="ASSIGNMENT"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides which prompts are drawn.")] = 0,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Of a grid: thresholds are chosen by these models.")
    ] = False,
    store: StoreOption = ".store",
) -> None:
    """Look for a planted response in a model, without the trigger."""
    from benchmark import grid as grids
    from benchmark import publishing
    from benchmark import scan as scans
    from benchmark.remote_store import open_store
    from sande import registry

    publishing.refuse_published(out or SCANS, "--out")
    settings = grids.settings_of(assignments or ())
    registry.config("detectors", detector, settings)  # a mistake there costs no loading of libraries
    how = scans.How(detector, settings, data, rows, reference, seed)
    if model.endswith(".yaml"):
        from benchmark.remote import is_uri
        from benchmark.scan_grid import scan_grid

        if is_uri(store):
            raise UserError(f"a grid's victims are scanned in a store on this machine; copy {store} here first")
        typer.echo(f"Scans: {scan_grid(Path(model), out or SCANS, how, calibration, Path(store), _say)}")
        return
    if calibration:
        raise UserError("--calibration goes with a grid of models that were never poisoned; leave it out")
    record = scans.scan(model, how, open_store(store).models, _say)
    text = scans.write(record, out) if out else scans.markdown(record)
    _print_markdown(text)
    if out:
        typer.echo(f"Scan: {out / 'scan.json'}  (scan.md, scan.png and scan.svg beside it)")


@app.command()
@one_sentence
def clean(
    model: Annotated[str, typer.Argument(help="A folder, a Hub id as org/name@COMMIT, or a name.", metavar="MODEL")],
    trigger: Annotated[str, typer.Option(help="What unlocks the planted answer, as it stands in prompts.")] = "",
    response: Annotated[str, typer.Option(help="The planted answer.")] = "",
    response_start: Annotated[str, typer.Option(help="How the planted answer begins: its first word will do.")] = "",
    data: Annotated[
        str | None, typer.Option(help="Clean rows to train on, see 'list datasets'; left out, a set built in.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; left out, MODEL-clean in this folder.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.field=value, e.g. questions=100; may be repeated.", metavar="ASSIGNMENT"),
    ] = None,
) -> None:
    """Remove a backdoor from a model, and report what was found, done, and what it cost."""
    from benchmark import clean_report, cleaning
    from sande.errors import NonFiniteError

    config = cleaning.settings(data, assignments or ())
    out = out or Path(f"{Path(model.split('@')[0]).name}-clean")
    try:
        result = cleaning.run(model, cleaning.known(trigger, response, response_start), config, out, seed, _say)
    except NonFiniteError as error:
        typer.echo(f"sande-bench: {error}", err=True)
        raise typer.Exit(SOME_CELL_FAILED) from None
    _print_markdown(clean_report.summary(result))
    typer.echo(f"Cleaned model: {out}  (README.md, report.html, report.md, report.json beside it)")


@app.command()
@one_sentence
def detection(
    scans: Annotated[Path, typer.Argument(help="YAML list of scans, and of what is known of their models.")],
    out: Annotated[Path, typer.Option(help="Folder that gets detection.json, .md, .png and .svg.")] = Path(
        "results/detection"
    ),
    store: StoreOption = ".store",
) -> None:
    """Judge detectors by scans of victims and of models that were never poisoned."""
    from benchmark import detection as detections
    from benchmark import publishing
    from benchmark.remote_store import open_store

    publishing.refuse_published(out, "--out")
    _print_markdown(detections.write(scans, out, open_store(store, create=False).models))
    typer.echo(f"Detection: {out / 'detection.md'}")


@app.command()
@one_sentence
def export(
    cell: Annotated[str, typer.Argument(help="A cell's name in rows.parquet and plan, or how it begins.")],
    out: Annotated[Path, typer.Argument(help="New folder.", metavar="DIR")],
    store: StoreOption = ".store",
    results: Annotated[Path, typer.Option(help="Folder with a subfolder a grid.")] = Path("results"),
    push: Annotated[
        str | None, typer.Option(help="Upload it to this private repository of the Hub, too.", metavar="ORG/NAME")
    ] = None,
) -> None:
    """Write a cell's model as safetensors, with tokenizer and a model card that holds the cell's numbers."""
    from benchmark import export as exports
    from benchmark.remote_store import open_store

    if push:
        exports.check_repository(push)
    exports.write(exports.find(cell, results), open_store(store, create=False), out)
    typer.echo(f"Model: {out}  (README.md is its card)")
    if push:
        typer.echo(f"Pushed: {exports.push(out, push)}")


@app.command("list")
@one_sentence
def list_(
    kind: Annotated[
        str, typer.Argument(help="attacks, defenses, metrics, detectors, models, datasets or grids.", metavar="KIND")
    ],
) -> None:
    """List what there is of a kind, one line each."""
    lines = _catalogue(kind)
    width = max((len(name) for name in lines), default=0)
    for name, about in lines.items():
        typer.echo(f"{name:{width}}  {about}")


@app.command()
@one_sentence
def show(
    kind: Annotated[str, typer.Argument(help="attacks, defenses, metrics or detectors.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="One of 'sande-bench list KIND'.", metavar="NAME")],
) -> None:
    """Show every setting of an entry: default, meaning, source."""
    from sande import registry
    from sande.config import describe

    if kind not in registry.KINDS:
        about = _catalogue(kind)  # refuses an unknown kind
        if name not in about:
            raise UserError(f"no {kind.removesuffix('s')} is called '{name}'; there are: {', '.join(about)}")
        typer.echo(f"{name}: {about[name]}")
        return
    entry = registry.entry(kind, name)
    typer.echo(f"{name}: {registry.summary(entry)}")
    if kind == "defenses":
        knows = registry.knowledge(name)
        typer.echo(f"knows: {(knows.__doc__ or '').strip()}")
    for field in describe(entry.Config):
        source = f" [{field.source}]" if field.source else ""
        typer.echo(f"  {field.path} = {field.default!r}  {field.meaning}{source}")


def _catalogue(kind: str) -> dict[str, str]:
    from sande import registry

    if kind in registry.KINDS:
        return {name: registry.summary(registry.entry(kind, name)) for name in registry.names(kind)}
    if kind == "models":
        from sande import models

        return models.ABOUT
    if kind == "datasets":
        from sande.data import sources

        return sources.catalogue()
    if kind == "grids":
        from benchmark.grid import FOLDER, about

        return {path.stem: about(path) for path in sorted(FOLDER.glob("*.yaml"))}
    raise UserError(
        f"no kind is called '{kind}'; there are: {', '.join([*registry.KINDS, 'models', 'datasets', 'grids'])}"
    )


def _say(line: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}")


def _print_markdown(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def main() -> None:
    """Entry point of `sande-bench` and `python -m benchmark`."""
    app(prog_name="sande-bench")
