"""Run a grid, from its file to its report: the body of `sande-bench run` as a function with a typed result."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.execution.progress import Progress
from benchmark.execution.provenance import code_version
from benchmark.forecast import machine, measured, shortage
from benchmark.forecast.searches import plan_searches
from benchmark.grid import shipped
from benchmark.grid.load import Grid, load_grid
from benchmark.held_out import mask
from benchmark.held_out import secret as secrets
from benchmark.held_out.mask import Hidden
from benchmark.io.remote import below
from benchmark.io.units import counted
from benchmark.plan import early, retention, searches
from benchmark.plan.failures import UNFINISHED, interrupted
from benchmark.plan.plan import Plan, make_plan, unfit
from benchmark.records import files, mark, published, record
from benchmark.records.folder import PARTIAL, ResultsFolder, refuse_other
from benchmark.records.rows import build_outcomes, build_rows, is_complete
from benchmark.report import freshness
from benchmark.search import report
from benchmark.store.leases import at_work
from benchmark.store.protocol import Store
from benchmark.store.remote import open_store
from sande.compute import has_gpu

STORE, RESULTS = ".store", "results"


@dataclass(frozen=True, slots=True)
class Request:
    """Options of a run.

    Attributes:
        grid: file, or a plain name as in `sande-bench list grids`.
        store: folder or URI of artifacts.
        results: folder or URI that gets a subfolder for the grid.
        address: a running Ray cluster; None starts Ray here.
        assignments: `path.to.field=value`, for every cell.
        only: `path=value`, to choose cells.
        scale: replaces the grid's own.
        keep: which models stay, see `benchmark.plan.retention`.
        secret: file of the secret of a held-out run, see `benchmark.held_out`; None: the grid's own triggers.
        spare: write beside a complete report, not over it, where a cell that it has measured fails now. Then the page
            of `Finished` tells where the rows are.
    """

    grid: Path
    store: str = STORE
    results: str = RESULTS
    address: str | None = None
    assignments: Sequence[str] = ()
    only: Sequence[str] = ()
    scale: str | None = None
    keep: str = retention.ALL
    secret: Path | None = None
    spare: bool = False

    @property
    def command(self) -> str:
        """Return the command with the options that decide what is computed; it does not say where the secret is."""
        made = record.command(shipped.named(self.grid), self.assignments, self.only, self.scale)
        return f"{made} --secret FILE" if self.secret else made

    @property
    def whole_command(self) -> str:
        """Return the command with the options of place and machine, too."""
        options = {
            "--store": self.store if self.store != STORE else None,
            "--results": self.results if self.results != RESULTS else None,
            "--address": self.address,
            "--keep-models": self.keep if self.keep != retention.ALL else None,
        }
        words = [word for option, value in options.items() if value is not None for word in (option, value)]
        made = self.command
        if self.secret:
            made = f"{made.removesuffix('FILE')}{shlex.quote(str(self.secret))}"
        return " ".join([made, *map(shlex.quote, words)])


@dataclass(frozen=True, slots=True)
class Finished:
    """Result of a run.

    Attributes:
        name: of the results folder.
        page: path of the report, below the place that the user gave.
        command: the whole command, to continue or repeat the run.
        cells: number of cells.
        failed: number of cells that failed.
        stages: number of stages that the cells need.
        done: number of stages that are done.
        interrupted: whether the user ended the run.
        texts: tables as Markdown.
        seconds: wall time.
    """

    name: str
    page: str
    command: str
    cells: int
    failed: int
    stages: int
    done: int
    interrupted: bool
    texts: tuple[str, ...]
    seconds: float


def run(
    request: Request,
    say: Callable[[str], None],
    show: Callable[[str], None],
    progress: Progress | None = None,
    shown: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Finished:
    """Run what is missing of a grid; write its rows and report.

    Args:
        request: options.
        say: receives a line whenever a stage ends or something else happens.
        show: receives lines about the whole run.
        progress: receives which stages are left, and which run.
        shown: returns a context that displays the progress; stages run in it.

    Raises:
        UserError: the grid or SANDE_COMPUTE_TYPE is wrong, a folder cannot be written, or the cluster cannot be
            reached.
        KeyboardInterrupt: the user ended it before there was anything to write, or pressed Ctrl-C twice.
    """
    begin, progress = time.perf_counter(), progress or Progress(request.grid.stem)
    retention.check(request.keep)
    early.check_compute_type()
    loaded = load_grid(request.grid, request.assignments, request.only, request.scale)
    hidden = _hidden(loaded, request.secret, show) if request.secret else None
    if hidden:
        loaded, say, show = hidden.grid, _redacted(say, hidden), _redacted(show, hidden)
    where = below(request.results, loaded.name)
    published.refuse_published(where, "--results")
    place = ResultsFolder(where)
    mark.check(place.folder, mark.RESULTS, "--results")
    files.check_writable(place.folder)
    place.check_writable()
    if not (hidden or loaded.search):  # a held-out run has its own folder; cells of a search get other ids in the rows
        refuse_other(where, request.grid, {cell.id for cell in loaded.cells})
    store = open_store(request.store)
    store.clear_leftovers()
    mark.claim(place.folder, mark.RESULTS, "--results")
    with at_work(store.lease_backend(), say) as others:  # or another run drops a model before the first stage here
        searched, lost = _search(loaded, store, request, say)
        misfits = unfit(searched.cells)
        for problem in [*shortage.few_rows(loaded.cells), *dict.fromkeys(misfits.values())]:
            show(problem)
        errors = {**lost, **misfits}
        # A cell whose search failed is a row with that error; it is not run with some other value. Nor is a misfit.
        fit = [cell for cell in searched.cells if not {cell.attack_key, cell.defense_key} & set(errors)]
        plan = make_plan(fit, store)
        show(
            f"{loaded.name}: {counted(len(plan.cells), 'cell')}, {counted(len(plan.stages), 'stage')}, "
            f"{len(plan.done)} done, {len(plan.missing)} to run"
        )
        progress.begin(plan.missing)
        if plan.missing and not (request.address or has_gpu()):
            expected = machine.here(plan, store, loaded.resources)
            progress.expected, progress.at_once = expected.by_stage, expected.at_once
            show(machine.summary(expected))
        with shown() if plan.missing else nullcontext():
            found, running = _execute(plan, store, loaded, request, say, progress, ended=interrupted(errors))
        errors = {**errors, **found}
        # What earlier runs kept, too.
        if any(retention.goes(stage.kind, request.keep) for stage in plan.stages.values()):
            done = make_plan(plan.cells, store).done
            retention.Keeper(plan.stages.values(), done, store, request.keep, others).sweep()
    if plan.missing or errors:  # what a killed driver's processes left that have ended since this run began, too
        store.clear_leftovers()
    if interrupted(errors):
        finished = _write_partial(loaded, searched, place, store, errors, request, hidden)
    else:
        finished = _write(loaded, searched, place, store, errors, request, hidden, show, computed=bool(plan.missing))
    took = time.perf_counter() - begin
    if plan.missing and not loaded.search:
        measured.keep_overhead(store, around=took - running)
    return replace(finished, seconds=took)


def _search(loaded: Grid, store: Store, request: Request, say: Callable[[str], None]) -> tuple[Grid, Mapping[str, str]]:
    """Run the missing searches; return the grid with the values that were found, and a line for each stage lost."""
    if not searches.pending(loaded, store):
        return searches.settled(loaded, store), {}
    from benchmark.search import run as search_run

    return search_run.run_searches(loaded, store, request.address, say)


def _execute(
    plan: Plan,
    store: Store,
    loaded: Grid,
    request: Request,
    say: Callable[[str], None],
    progress: Progress,
    *,
    ended: bool,
) -> tuple[dict[str, str], float]:
    """Do the missing stages, unless the run has ended; return a line for each left or failed, and the seconds."""
    unfinished: dict[str, str] = dict.fromkeys((stage.key for stage in plan.missing), UNFINISHED)
    if ended:
        return unfinished, 0.0
    begin = time.perf_counter()
    errors: dict[str, str] = {}
    if plan.missing:
        store.check_writable()
        try:
            progress.phase = "loading Ray"
            from benchmark.execution import driver
            from benchmark.plan import preflight

            begin = time.perf_counter()
            check = partial(preflight.check, plan.cells, store, say)
            errors = driver.run(
                plan, store, loaded.resources, request.address, say, request.keep, progress=progress, check=check
            )
        except KeyboardInterrupt:  # before the first stage; the rows are still written
            errors = unfinished
        except Exception:
            store.check_there()  # if it is not, the error follows from that
            raise
        store.check_there()
    return errors, time.perf_counter() - begin


def _write(
    loaded: Grid,
    searched: Grid,
    place: ResultsFolder,
    store: Store,
    errors: Mapping[str, str],
    request: Request,
    hidden: Hidden | None,
    show: Callable[[str], None],
    *,
    computed: bool,
) -> Finished:
    """Write rows, record and report of a complete run, unless they are there already."""
    folder, shown = place.folder, place.shown
    if errors and request.spare:
        lost = _lost(place.fetch(), _rows(searched, store, errors, hidden))
        folder, shown = _prepared(place, beside=lost > 0)
        if lost:
            show(
                f"{place.shown}: {lost} of its cells failed now, so its complete report stays, and that of this run is "
                f"in {shown}; run the same command to retry them, or remove {place.shown}/rows.parquet to replace it"
            )
    report.write(loaded, store, folder)
    plan = make_plan(searched.cells, store)
    made_of = None if errors else freshness.fingerprint(searched, plan, store, request.command)
    texts = freshness.cached_output(folder, made_of, store) if made_of else None
    failed = 0
    if texts is None:
        from benchmark.report import page

        failed = _write_rows(searched, store, errors, folder, hidden)
        made = record.now(request.command, code_version(), complete=True)
        if computed or not record.same(record.read(folder), made):
            record.write(made, folder)
        texts = page.write(folder)
        if made_of:
            freshness.record(folder, made_of, texts, store)
    mark.remove(folder / PARTIAL, mark.RESULTS)
    place.send()
    return _finished(loaded, request, shown, searched, failed, plan, texts)


def _lost(folder: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Return how many cells failed that a folder has measured; 0 unless its report is complete, without failed cells.

    Args:
        folder: of earlier results.
        rows: of this run.
    """
    if not is_complete(folder):
        return 0
    before = files.read_rows(folder)
    if pc.any(files.of_failed_cells(before)).as_py():
        return 0
    failed = {row["cell"] for row in rows if files.is_failed(row)}
    return len(failed.intersection(before["cell"].unique().to_pylist()))


def _prepared(place: ResultsFolder, *, beside: bool) -> tuple[Path, str]:
    """Return a writable folder, and how it is shown: that of the results, or the one beside a report that stays."""
    folder, shown = place.folder, place.shown
    if beside:
        folder, shown = folder / PARTIAL, f"{shown}/{PARTIAL}"
    mark.claim(folder, mark.RESULTS, "--results")
    files.check_writable(folder)
    return folder, shown


def _write_partial(
    loaded: Grid,
    searched: Grid,
    place: ResultsFolder,
    store: Store,
    errors: Mapping[str, str],
    request: Request,
    hidden: Hidden | None,
) -> Finished:
    """Write what is measured; next to a complete report, into a subfolder, so that the report is kept."""
    from benchmark.report import page

    folder, shown = _prepared(place, beside=is_complete(place.fetch()))
    report.write(loaded, store, folder)
    unknown = frozenset(cell.id for cell in searches.pending(searched, store))
    failed = _write_rows(searched, store, errors, folder, hidden, unknown)
    record.write(record.now(request.command, code_version(), complete=False), folder)
    page.write(folder)
    place.send()
    now, _ = plan_searches(loaded, store)
    return _finished(loaded, request, shown, searched, failed, now, None)


def _write_rows(
    grid: Grid,
    store: Store,
    errors: Mapping[str, str],
    folder: Path,
    hidden: Hidden | None,
    unknown: frozenset[str] = frozenset(),
) -> int:
    """Write rows and outcomes, those of a held-out run without what is hidden; return the number of failed cells."""
    rows = _rows(grid, store, errors, hidden, unknown)
    outcomes: Iterable[pa.Table] = build_outcomes([cell for cell in grid.cells if cell.id not in unknown], store)
    return files.write_rows(rows, hidden.outcomes(outcomes) if hidden else outcomes, folder)


def _rows(
    grid: Grid, store: Store, errors: Mapping[str, str], hidden: Hidden | None, unknown: frozenset[str] = frozenset()
) -> Iterable[dict[str, Any]]:
    """Return the rows, those of a held-out run without what is hidden.

    Args:
        grid: with the settings that searches found.
        store: artifacts.
        errors: one line for each stage that failed, by key.
        hidden: the held-out run; None: nothing is hidden.
        unknown: ids of cells whose settings no search has found yet.
    """
    rows = build_rows(grid.name, grid.cells, store, errors, grid.parts, grid.scale, unknown, grid.searched)
    return hidden.rows(rows) if hidden else rows


def _hidden(loaded: Grid, file: Path, show: Callable[[str], None]) -> Hidden:
    """Return the grid in its hidden form; warn of a secret that others can read."""
    hidden = mask.hide(loaded, secrets.read(file))
    if secrets.is_shared(file):
        show(f"{file}: other users can read the secret; use 'chmod 600 {file}', unless it is published")
    return hidden


def _redacted(say: Callable[[str], None], hidden: Hidden) -> Callable[[str], None]:
    return lambda line: say(hidden.redacted(line))


def _finished(
    loaded: Grid, request: Request, shown: str, searched: Grid, failed: int, plan: Plan, texts: Sequence[str] | None
) -> Finished:
    """Return the result of a run, without its seconds; `texts` is None where it was interrupted."""
    return Finished(
        loaded.name,
        f"{shown}/README.md",
        request.whole_command,
        cells=len(searched.cells),
        failed=failed,
        stages=len(plan.stages),
        done=len(plan.done),
        interrupted=texts is None,
        texts=tuple(texts or ()),
        seconds=0.0,
    )
