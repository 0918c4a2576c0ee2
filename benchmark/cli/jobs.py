"""`submit`, `logs`, `status` and `stop`: grids as jobs on a Ray cluster."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from benchmark.cli.app import echo, one_sentence, print_table
from benchmark.cli.options import (
    DashboardOption,
    GridArgument,
    JobArgument,
    KeepOption,
    OnlyOption,
    ScaleOption,
    SetOption,
    words_of,
)


@one_sentence
def submit(
    context: typer.Context,
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
            help="Pass this environment variable to the job, too; Ray shows it to everyone with the cluster's token.",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Run a grid on a Ray cluster as a job; follow its log, and end as it ends. Ctrl-C leaves it running."""
    from benchmark.execution import jobs
    from benchmark.plan import retention

    retention.check(keep)
    options = words_of(context, leave_out=("grid", "address", "store", "results", "scale", "environment"))
    job = jobs.submit(grid, address, store, results, options, scale, environment or ())
    echo(f"submitted {job}; to stop it: sande-bench stop {job} --address {address}")
    follow(job, address)


@one_sentence
def logs(job: JobArgument, address: DashboardOption) -> None:
    """Print the log of a job from its beginning, follow it while the job runs, and end as it ends."""
    follow(job, address)


def follow(job: str, address: str) -> None:
    """Print the log of a job, and end with its exit code."""
    from benchmark.execution import jobs

    try:
        code = jobs.follow(job, address, partial(echo, nl=False))
    except KeyboardInterrupt:
        echo(
            f"{job} is still running; 'sande-bench logs {job} --address {address}' follows it again, and "
            f"'sande-bench stop {job} --address {address}' ends it",
            err=True,
        )
        code = jobs.INTERRUPTED
    if code:
        raise typer.Exit(code)


@one_sentence
def status(
    address: DashboardOption,
    job: Annotated[str | None, typer.Argument(help="One job; without it, all.", metavar="ID")] = None,
) -> None:
    """List the jobs of a cluster: state, when each began, how long it took, its command."""
    from benchmark.execution import jobs

    print_table(jobs.status(address, job))


@one_sentence
def stop(job: JobArgument, address: DashboardOption) -> None:
    """End a job; it keeps what is done, and writes its rows."""
    from benchmark.execution import jobs

    echo(jobs.stop(address, job))
