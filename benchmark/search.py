"""Settings of the defenses found by search, for each cell its own, before the grid's cells are run with them.

search:
  space:
    defense.eliminate.learning_rate: {low: 1e-5, high: 1e-3}  # drawn log-uniformly; or a list of values
    defense.training.learning_rate: [1e-5, 1e-4]              # each path in those defenses that have it
  trials: 8
  held_out_rows: 64
  reports: 4

Objective, to be low: the mean over the response tokens of held-out rows of -log Pr(y | prompt with the trigger), which
is Eq. 3 of the paper, on rows that neither the victim, nor the defense, nor the test has. It is one number for both
ends: it is high while the trigger still draws r_t instead of y, and where a value makes the model's answers worse. It
takes the trigger, so it is a researcher's ablation (how good can each defense be?) and not a defender's tool.

The values to try depend on the cell's seed alone. Which of them ASHA stops early depends on the order in which trials
report, so two searches with several trials at a time may differ; what was found is in the store, and is not searched
for again.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import plan as plans
from benchmark.cell import Cell, digest
from benchmark.failures import UNFINISHED, StageError, classify, interrupted
from benchmark.leases import POLL, Leases
from benchmark.rules import assign, takes
from benchmark.stages import Stage, code_version
from benchmark.store import Store, write_atomically
from sande import registry
from sande.config import as_dict, configuration, configure, setting
from sande.data import sources
from sande.errors import UserError
from sande.prompts import prompt_text
from sande.types import Example, PreferenceData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from benchmark.grid import Grid

VERSION = 1  # raise it when the objective, the rows it is taken on or the way values are drawn changes
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # states of a trial


@configuration
class Search:
    """What is searched, and at which expense."""

    space: dict[str, Any] | None = setting(None, "by path into the defense, {low, high} or a list of values")
    trials: int = setting(8, "values that are tried for a cell", ge=1)
    held_out_rows: int = setting(64, "rows that a value is judged on", ge=1)
    reports: int = setting(4, "reports of a trial, evenly over its last training; ASHA may stop it at each", ge=1)


@dataclass(frozen=True, slots=True)
class Job:
    """The search for a cell, or for several that differ in nothing but what is measured.

    Attributes:
        key: of its outcome in the store, made of everything that this depends on.
        cell: with the first of the proposals.
        proposals: for each trial its values by path.
        search: as in the grid.
    """

    key: str
    cell: Cell
    proposals: tuple[dict[str, Any], ...]
    search: Search

    @property
    def label(self) -> str:
        """For people."""
        return f"search {self.cell.model.rstrip('/').split('/')[-1]} {self.cell.defense.name} {self.key[:8]}"


def parse(values: Mapping[str, Any], cells: Sequence[Cell]) -> Search | None:
    """The `search` of a grid, checked against its cells; None where there is none.

    Raises:
        UserError: an unknown key, a path that no defense has, or values that it does not take.
    """
    if not values:
        return None
    search = configure(Search, values, "search")
    if not search.space:
        raise UserError("search: no 'space'; give paths, such as defense.eliminate.learning_rate: [1e-5, 1e-4]")
    for path, choice in search.space.items():
        if not path.startswith("defense.") or path == "defense.name":
            raise UserError(f"search: '{path}' is no setting of a defense, and nothing else is searched; take it out")
        taking = {cell.defense.name: cell for cell in cells if takes(cell.settings(), path)}
        if not taking:
            raise UserError(
                f"search: no defense of this grid has the setting '{path}'; see 'sande-bench show defenses NAME'"
            )
        for cell, value in itertools.product(taking.values(), _examples(path, choice)):
            try:
                with_values(cell, {path: value})
            except UserError as error:
                raise UserError(f"search: {error}") from None
    jobs = [job_of(search, cell) for cell in cells]
    if len({job.cell.id if job else cell.id for cell, job in zip(cells, jobs, strict=True)}) < len(cells):
        raise UserError("search: some cells differ in nothing but what is searched; take that out of 'sweep'")
    return search


def _examples(path: str, choice: Any) -> list[Any]:
    """Values that show whether the defense takes the whole of a choice."""
    if isinstance(choice, list) and choice:
        return choice
    if isinstance(choice, Mapping) and set(choice) == {"low", "high"}:
        low, high = choice["low"], choice["high"]
        if all(type(end) in (int, float) for end in (low, high)) and 0 < low < high:
            return [float(low), _draw(choice, random.Random(0)), float(high)]
    raise UserError(
        f"search: '{path}' is {choice!r}; give {{low: …, high: …}} with 0 < low < high, or a list of values"
    )


def proposals(search: Search, cell: Cell) -> tuple[dict[str, Any], ...]:
    """Values for each trial by path; of lists every combination, if there are no more than `trials`.

    Empty where the cell's defense has none of the settings.
    """
    space = {path: choice for path, choice in sorted((search.space or {}).items()) if takes(cell.settings(), path)}
    if not space:
        return ()
    generator = random.Random(cell.seed)
    if all(isinstance(choice, list) for choice in space.values()):
        points = list(itertools.product(*space.values()))
        points = points if len(points) <= search.trials else generator.sample(points, search.trials)
    else:
        points = [tuple(_draw(choice, generator) for choice in space.values()) for _ in range(search.trials)]
    return tuple(dict(zip(space, point, strict=True)) for point in points)


def _draw(choice: Any, generator: random.Random) -> Any:
    if isinstance(choice, list):
        return generator.choice(choice)
    value = math.exp(generator.uniform(math.log(choice["low"]), math.log(choice["high"])))
    return float(f"{value:.3g}")  # more digits would only make tables hard to read


def with_values(cell: Cell, values: Mapping[str, Any]) -> Cell:
    """The cell with other values at some paths.

    Raises:
        UserError: the defense does not take one.
    """
    nested = cell.settings()
    for path, value in values.items():
        assign(nested, path, value)
    return Cell.parse(nested)


def job_of(search: Search, cell: Cell) -> Job | None:
    """The search that a cell needs; None where its defense has none of the settings."""
    proposed = proposals(search, cell)
    if not proposed:
        return None
    fixed = with_values(cell, proposed[0])
    # With the searched settings fixed, the defense's key holds all the rest: victim, rows, other settings, code.
    return Job(digest(["search", VERSION, fixed.defense_key, as_dict(search)]), fixed, proposed, search)


def pending(grid: Grid, store: Store) -> dict[Cell, Job]:
    """Those of the grid's cells whose search is still to be done."""
    jobs = {cell: job_of(grid.search, cell) for cell in grid.cells} if grid.search else {}
    return {cell: job for cell, job in jobs.items() if job and not store.has("search", job.key)}


def settled(grid: Grid, store: Store) -> Grid:
    """The grid with the values that were found."""
    if not grid.search:
        return grid
    found: dict[Cell, Cell] = {}
    for cell in grid.cells:
        found[cell] = cell
        job = job_of(grid.search, cell)
        if job and store.has("search", job.key):
            found[cell] = with_values(cell, store.manifest("search", job.key)["best"])
    return replace(
        grid,
        cells=tuple(found[cell] for cell in grid.cells),
        parts={new.id: grid.parts[cell.id] for cell, new in found.items()},
    )


def run(grid: Grid, store: Store, address: str | None, say: Callable[[str], None]) -> tuple[Grid, dict[str, str]]:
    """Do the searches that are missing: first the victims, as ordinary stages, then one search after the other.

    Returns:
        The grid with the values that were found; and a line of error for each stage that failed, or that cannot be done
        because no value was found.

    Raises:
        UserError: what `preflight.check` finds, too few rows to hold out, or a cluster that cannot be reached.
    """
    waiting = pending(grid, store)
    if not waiting:
        return settled(grid, store), {}
    from benchmark import cluster, execute, preflight, trials  # execute sets what Ray reads on import
    from sande import models

    preflight.check(grid.cells, store)
    jobs = {job.key: job for job in waiting.values()}
    for line in store.set_aside_damaged(("search", key) for key in jobs):
        say(line)
    for job in jobs.values():
        held_out(job, models.load_tokenizer(job.cell.model, store.models))
    victims = plans.make(map(plans.victim_of, waiting), store, needed=[cell.attack_key for cell in waiting])
    victim_errors: dict[str, str] = {}
    failed: dict[str, str] = dict.fromkeys(jobs, UNFINISHED)
    with suppress(KeyboardInterrupt), cluster.cluster(address), closing(Leases(store.board(), say)) as leases:
        victim_errors = execute.run(victims, store, grid.resources, address, say)
        if interrupted(victim_errors):
            raise KeyboardInterrupt
        for number, job in enumerate(jobs.values(), start=1):
            error = victim_errors.get(job.cell.attack_key)
            try:
                if not error and _ours(job, store, leases, say):
                    error = _keep(job, trials.run(job, store, grid.resources), store)
            except StageError as ended:
                error = classify(ended)
            finally:
                leases.release(job.key)
            say(f"[{number}/{len(jobs)}] {job.label}{f' FAILED: {error}' if error else f': {_found(job, store)}'}")
            if error:
                failed[job.key] = error
            else:
                del failed[job.key]
    lost = {cell: failed[job.key] for cell, job in waiting.items() if job.key in failed}
    errors = {cell.attack_key: error for cell, error in lost.items() if cell.attack_key in victim_errors}
    return settled(grid, store), errors | {cell.defense_key: error for cell, error in lost.items()}


def _ours(job: Job, store: Store, leases: Leases, say: Callable[[str], None]) -> bool:
    """Whether the search is left to this run to do; waits while another run is doing it."""
    told = False
    while holder := leases.take(job.key, [("search", job.key)]):
        if not told:
            say(f"{job.label}: left to {holder}, which is doing it")
        told = True
        time.sleep(POLL)
    return not store.has("search", job.key)


def held_out(job: Job, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """The first rows of the victim's train split whose prompt stands in no row of victim, defense or test split.

    Within the limits on the victim's tokens they lie behind the rows that it trains on.

    Raises:
        UserError: there are too few.
    """
    cell, wanted = job.cell, job.search.held_out_rows
    rows = sources.examples(cell.data.name)
    used = [*sources.training_rows(cell.data, tokenizer), *sources.held_out_split(rows)]
    if registry.knowledge(cell.defense.name) is not PreferenceData:
        used += sources.removal_rows(cell.removal, tokenizer)
    seen = {prompt_text(example) for example in used}
    unseen = [example for example in sources.train_split(rows) if prompt_text(example) not in seen]
    found = (
        sources.select(unseen, tokenizer, cell.data, wanted, f"rows of {cell.data.name} to hold out") if unseen else ()
    )
    if len(found) < wanted:
        raise UserError(
            f"search: held_out_rows is {wanted}, but victim and defense leave {len(found)} rows of {cell.data.name}'s "
            "train split; lower it, data.rows or removal.rows"
        )
    return found


def _keep(job: Job, tried: Sequence[Mapping[str, Any]], store: Store) -> str | None:
    """Store the outcome; where every trial failed nothing is stored, and the first one's error is returned."""
    good = [trial for trial in tried if trial["state"] != FAILED]
    if not good:
        return f"search: all {len(tried)} trials failed, the first: {tried[0]['error']}"
    best = min(good, key=_rank)
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


def _rank(trial: Mapping[str, Any]) -> tuple[bool, int, float]:
    """Lower is better: losses at different points of a training do not compare, so whoever came further is first."""
    losses = trial["losses"]
    return trial["state"] == FAILED, -len(losses), losses[-1] if losses else math.inf


def _found(job: Job, store: Store) -> str:
    manifest = store.manifest("search", job.key)
    states = [trial["state"] for trial in manifest["trials"]]
    return (
        f"best {_text(manifest['best'])}, of {len(states)} trials of which {states.count(STOPPED)} stopped early and "
        f"{states.count(FAILED)} failed"
    )


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.removeprefix('defense.')}={value}" for path, value in values.items())


def plan(grid: Grid, store: Store, cost: Callable[[Iterable[Stage]], str] | None = None) -> tuple[plans.Plan, str]:
    """Return the plan of a grid, and a sentence on the searches before it; empty where none is left to do.

    Whatever a cell needs behind its victim counts as to run while its values are not found.

    Args:
        grid: as loaded.
        store: what is there.
        cost: returns in words how long trials take; left out, their GPU-hours.
    """
    waiting = pending(grid, store)
    made = plans.make(settled(grid, store).cells, store)
    unknown = {stage.key for cell in waiting for stage in plans.stages_of(cell) if stage.kind != "attack"}
    made = replace(made, done=made.done - unknown)
    if not grid.search or not waiting:
        return made, ""
    from benchmark import estimate

    jobs = {job.key: job for job in waiting.values()}
    trials = [with_values(job.cell, values) for job in jobs.values() for values in job.proposals]
    stages = [Stage.of(cell, "defend", cell.defense_key) for cell in trials]
    more = cost(stages) if cost else estimate.told(sum(estimate.estimate(stages).seconds.values()))
    return made, (
        f"Search: {len(jobs)} to run between attack and defend, for {', '.join(grid.search.space or {})} of "
        f"{len(waiting)} cells: {len(trials)} trials, at most {more} more; the values are found at "
        "run time, so what depends on them counts as to run"
    )


def write(grid: Grid, store: Store, folder: Path) -> None:
    """Write all trials of the grid's searches as `search.parquet`, and as `search.md` for the report.

    Args:
        grid: as loaded, without the values that were found.
        store: holds the searches that are done.
        folder: the grid's results; what an earlier run left there of a search goes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from benchmark.labels import labels

    paths = folder / "search.parquet", folder / "search.md"
    jobs = {job.key: job for cell in grid.cells if grid.search and (job := job_of(grid.search, cell))}
    done = [job for job in jobs.values() if store.has("search", job.key)]
    if not grid.search or not done:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    rows = [
        {"search": job.key[:12], "defense": defense, "victim": victim, "seed": job.cell.seed}
        | {**trial, "values": json.dumps(trial["values"])}
        for job, (defense, victim) in zip(done, labels([job.cell.settings() for job in done]), strict=True)
        for trial in sorted(store.manifest("search", job.key)["trials"], key=_rank)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    write_atomically(paths[0], sink.getvalue().to_pybytes())
    write_atomically(paths[1], _markdown(rows, grid.search))


def _markdown(rows: Sequence[Mapping[str, Any]], search: Search) -> str:
    numbers = range(search.reports)
    head = ["defense", "victim", "seed", "value", *(f"{number + 1}/{search.reports}" for number in numbers), "state"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        losses = dict(enumerate(row["losses"]))
        shown = ["–" if losses.get(number) is None else f"{losses[number]:.3f}" for number in numbers]
        state = "**best**" if row["best"] else row["error"] or row["state"]
        cells = [
            f"`{row['defense']}`",
            row["victim"],
            str(row["seed"]),
            _text(json.loads(row["values"])),
            *shown,
            state,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "### Learning-rate search",
            "",
            f"Mean of −log Pr(y | prompt with the trigger) over the response tokens of {search.held_out_rows} rows "
            "that neither victim, defense nor test has (Eq. 3): high while the backdoor answers, and where answers are "
            "bad. Each trial reports it at these parts of its last training, and ASHA stops the worse ones early. The "
            "best value is the one used above. It takes the trigger to find it, so no defender could do the same.",
            "",
            *lines,
            "",
        ]
    )
