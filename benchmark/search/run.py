"""Run the searches of a grid before its cells, see `benchmark.grid.space`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from benchmark.execution import driver
from benchmark.execution.cluster import cluster
from benchmark.execution.provenance import code_version
from benchmark.grid.load import Grid
from benchmark.grid.space import FAILED, Job
from benchmark.plan import plan, preflight
from benchmark.plan.failures import UNFINISHED, StageError, classify, interrupted
from benchmark.plan.searches import pending, settled
from benchmark.search import trial
from benchmark.search.held_out import held_out
from benchmark.search.report import found_summary, rank_trials
from benchmark.store.leases import POLL, Leases
from benchmark.store.protocol import Store
from sande.config import as_dict


def run_searches(
    grid: Grid, store: Store, address: str | None, say: Callable[[str], None]
) -> tuple[Grid, dict[str, str]]:
    """Run the missing searches: first the victims, as ordinary stages, then one search after the other.

    Returns:
        The grid with the values that were found; and one line for each stage that failed, or that cannot run because
        its search found no value.

    Raises:
        UserError: what `preflight.check` finds, too few rows to hold out, a store that cannot be written, or a cluster
            that cannot be reached.
    """
    waiting = pending(grid, store)
    if not waiting:
        return settled(grid, store), {}

    store.check_writable()
    preflight.check(grid.cells, store, say)
    jobs = {job.key: job for job in waiting.values()}
    for line in store.quarantine_damaged(("search", key) for key in jobs):
        say(line)
    for job in jobs.values():
        held_out(job, preflight.load_tokenizer(job.cell.model, job.cell.prompt_format, store))
    victims = plan.make_plan(map(plan.victim_of, waiting), store, needed=[cell.attack_key for cell in waiting])
    victim_errors: dict[str, str] = {}
    failed: dict[str, str] = dict.fromkeys(jobs, UNFINISHED)
    with suppress(KeyboardInterrupt), cluster(address), closing(Leases(store.lease_backend(), say)) as leases:
        victim_errors = driver.run(victims, store, grid.resources, address, say)
        if interrupted(victim_errors):
            raise KeyboardInterrupt
        for number, job in enumerate(jobs.values(), start=1):
            error = victim_errors.get(job.cell.attack_key)
            try:
                if not error and _ours(job, store, leases, say):
                    error = _keep(job, trial.run(job, store, grid.resources), store)
            except StageError as ended:
                error = classify(ended)
            finally:
                leases.release(job.key)
            outcome = f" FAILED: {error}" if error else f": {found_summary(job, store)}"
            say(f"[{number}/{len(jobs)}] {job.label}{outcome}")
            if error:
                failed[job.key] = error
            else:
                del failed[job.key]
    lost = {cell: failed[job.key] for cell, job in waiting.items() if job.key in failed}
    errors = {cell.attack_key: error for cell, error in lost.items() if cell.attack_key in victim_errors}
    return settled(grid, store), errors | {cell.defense_key: error for cell, error in lost.items()}


def _ours(job: Job, store: Store, leases: Leases, say: Callable[[str], None]) -> bool:
    """Wait while another run does the search; then return whether it is left to this run."""
    waiting = False
    while holder := leases.acquire(job.key, [("search", job.key)]):
        if not waiting:
            say(f"{job.label}: left to {holder}, which is doing it")
        waiting = True
        time.sleep(POLL)
    return not store.has("search", job.key)


def _keep(job: Job, tried: Sequence[Mapping[str, Any]], store: Store) -> str | None:
    """Store the outcome; where every trial failed, store nothing and return the error of the first one."""
    good = [trial for trial in tried if trial["state"] != FAILED]
    if not good:
        return f"search: all {len(tried)} trials failed, the first: {tried[0]['error']}"
    best = min(good, key=rank_trials)
    manifest = {
        "kind": "search",
        "settings": job.cell.settings(),
        "search": as_dict(job.search),
        "trials": [{**trial, "best": trial is best} for trial in tried],
        "best": best["values"],
        "code_version": code_version(),
        "ended_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.put("search", job.key, lambda folder: manifest)
    return None
