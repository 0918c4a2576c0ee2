"""`run` and `plan`: a grid on this machine or a cluster, and what that would compute."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from benchmark.cli.app import SOME_CELL_FAILED, echo, interruptible, one_sentence, print_markdown, tell
from benchmark.cli.options import (
    AddressOption,
    GpusOption,
    GridArgument,
    KeepOption,
    MachineOption,
    OnlyOption,
    ResultsOption,
    ScaleOption,
    SecretOption,
    SetOption,
    StoreOption,
)
from benchmark.execution import progress as execution_progress
from benchmark.execution import signals
from benchmark.execution.progress import Progress
from benchmark.forecast.scaling import EFFICIENCY, NO_GAIN
from benchmark.grid.resources import Kind
from benchmark.io.remote import below
from benchmark.io.units import counted
from benchmark.store.remote import open_store
from sande import compute
from sande.errors import UserError

if TYPE_CHECKING:
    from benchmark.pipeline import Finished
    from benchmark.plan.stage import Stage


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
    secret: SecretOption = None,
) -> None:
    """Run what is missing of a grid; write its rows and report."""
    from benchmark import pipeline

    request = pipeline.Request(
        grid,
        store,
        results,
        address=address,
        assignments=assignments or (),
        only=only or (),
        scale=scale,
        keep=keep,
        secret=secret,
        spare=True,
    )
    progress = Progress(grid.stem)
    view = execution_progress.view(progress, echo)
    finished = pipeline.run(request, view.say, view.show, progress, view.shown)
    if finished.interrupted:
        tell(_interrupted(finished))
        raise typer.Exit(signals.exit_code())
    for text in finished.texts:
        print_markdown(text)
    echo(f"Report: {finished.page}  (next to it: tables/, figures/, rows.parquet)")
    echo(f"{finished.name} took {finished.seconds:.0f} s")
    if finished.failed:
        echo(f"{finished.failed} of {counted(finished.cells, 'cell')} failed; the same command retries them", err=True)
        raise typer.Exit(SOME_CELL_FAILED)


def _interrupted(finished: Finished) -> str:
    """Return the sentence on a run that the user ended: what is done, what is left, how to continue."""
    left = finished.stages - finished.done
    failed = f" {finished.failed} of {counted(finished.cells, 'cell')} failed." if finished.failed else ""
    return (
        f"Interrupted: {finished.done} of {counted(finished.stages, 'stage')} {_are(finished.done)} done, {left} "
        f"{_are(left)} left.{failed} Run the same command to continue: {finished.command}. "
        f"Measured so far: {finished.page}"
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


@one_sentence
@interruptible
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
    suggest: Annotated[
        bool,
        typer.Option("--suggest", help="With --gpus: the workers of each kind of stages that the forecast finds best."),
    ] = False,
    scaling: Annotated[
        float | None,
        typer.Option(
            min=NO_GAIN,
            max=1.0,
            help="With --gpus: the share of its speed that a worker keeps as their number doubles. "
            f"Default: what the store measured, else {EFFICIENCY}.",
        ),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Show how the time was estimated.")] = False,
) -> None:
    """Show the cells of a grid, what is done, what would run and how long it takes. Start nothing."""
    from benchmark.cli import overview
    from benchmark.forecast import cost as forecast_cost
    from benchmark.forecast import disk, searches, shortage, wall_time
    from benchmark.forecast import machine as forecast_machine
    from benchmark.forecast.cost import basis
    from benchmark.forecast.machine import here, summary, trainings_here
    from benchmark.forecast.measured import is_cpu
    from benchmark.forecast.suggest import report
    from benchmark.grid.load import load_grid
    from benchmark.grid.stage_resources import workers_in_words
    from benchmark.plan import batches, early, retention
    from benchmark.plan.plan import unfit

    if suggest and (not gpus or is_cpu(machine)):
        raise UserError("--suggest: needs --gpus N, and a machine with GPUs; set --gpus, or remove --suggest")
    if scaling is not None and (not (gpus or machine) or is_cpu(machine)):
        raise UserError("--scaling: needs --gpus N, and a machine with GPUs; set --gpus, or remove --scaling")
    retention.check(keep)
    early.check_compute_type()
    if os.path.isfile(store):
        raise UserError(f"store {store} is a file; choose a folder or a URI as --store")
    loaded = load_grid(grid, assignments or (), only or (), scale)
    opened = open_store(store, create=False)
    on_cpu = not (address or gpus or machine or compute.has_gpu())
    cost = partial(trainings_here, store=opened) if on_cpu else None
    made, searching = searches.plan_searches(loaded, opened, cost)
    forecaster = forecast = None
    if gpus or machine:  # before the table, since its mistakes are to be the only line
        forecaster = wall_time.Forecaster(made, opened, gpus or 1, machine, EFFICIENCY if scaling is None else scaling)
        forecast = forecaster.predict(loaded.resources)
    overview.show(made, f"{loaded.name}: {loaded.about}", loaded.parts)
    lines = [
        f"{counted(len(made.stages), 'distinct stage')}: {_counts(made.stages.values())}; each victim is trained once"
    ]
    reasons: list[str] = []
    hint = "" if why else " (--why: how this was estimated)"
    if on_cpu:
        expected = here(made, opened, loaded.resources)
        lines.append(f"{summary(expected)}{hint if expected.stages else ''}")
        reasons += forecast_machine.reasons(expected)
    else:
        lines.append(f"{forecast_cost.summary(made)}{hint}")
        reasons.append(f"Estimate: {basis()}")
    if forecaster and forecast:
        line, reason = wall_time.in_words(forecast, len(made.missing), gpus or 1, machine)
        lines.append(line)
        reasons += filter(None, [reason])
        lines += report(made, forecaster.predict, loaded.resources, gpus or 1) if suggest else ()
    lines.append(disk.summary(made, opened, keep))
    lines += filter(None, [searching])
    lines += shortage.few_rows(loaded.cells, broken=True)
    lines += dict.fromkeys(unfit(loaded.cells).values())
    lines += workers_in_words(made.stages.values(), loaded.resources)
    lines += batches.problems(made.missing, loaded.resources)
    if why:
        lines += _reasons(reasons)
    lines.append(
        f"{counted(len(made.cells), 'cell')}, {counted(len(made.stages), 'stage')}, {len(made.done)} done; "
        f"to run: {_counts(made.missing)}; on {address or 'this machine'}; store {store}, "
        f"results {below(results, loaded.name)}"
    )
    for line in lines:
        echo(line if "\n" in line else overview.folded(line, overview.width(), "  "))


def _reasons(reasons: list[str]) -> Iterator[str]:
    """Yield the lines that explain an estimate."""
    if reasons:
        yield from ("", "How the time was estimated:", *(f"- {reason}" for reason in reasons), "")


def _counts(stages: Iterable[Stage]) -> str:
    kinds = [stage.kind for stage in stages]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in get_args(Kind) if kind != "part" or kind in kinds)
