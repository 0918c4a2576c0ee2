"""The trials of a grid's searches as `search.parquet`, and as `search.md` for the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.grid.cell import SEEDS
from benchmark.grid.labels import labels
from benchmark.grid.load import Grid
from benchmark.grid.space import FAILED, KNOWN, STOPPED, TRIGGERED, Job, Search, job_of, level
from benchmark.io.files import write_atomically, write_table
from benchmark.io.markdown import code, markdown_table, plain
from benchmark.store.protocol import Store

_JUDGES = {
    KNOWN: "The judge knows what the defense knows, and no more. Its loss is the mean of −log Pr(y | x) over the "
    "response tokens of {rows} held-out rows (for preference pairs: of the better reply). If the planted answer or its "
    "first token is known, saying it without the trigger adds to the loss; of an incident, giving the reported answer "
    "to the reported prompt does. A good loss does not show that the backdoor is gone: see the ASR above.",
    TRIGGERED: "The judge knows the trigger. Its loss is the mean of −log Pr(y | prompt with the trigger) over the "
    "response tokens of {rows} held-out rows (Eq. 3): high while the backdoor answers, and where answers are bad. "
    "Without the trigger nobody could search like this, so the rows of these cells count as knowing the trigger.",
}


def rank_trials(trial: Mapping[str, Any]) -> tuple[bool, int, float]:
    """Return a sort key: completed reports, most first, then the loss, as losses of different steps do not compare."""
    losses = trial["losses"]
    return trial["state"] == FAILED, -len(losses), losses[-1] if losses else math.inf


def found_summary(job: Job, store: Store) -> str:
    """Return the outcome of a search in words."""
    manifest = store.manifest("search", job.key)
    states = [trial["state"] for trial in manifest["trials"]]
    return (
        f"best {_text(manifest['best'])}, of {len(states)} trials of which {states.count(STOPPED)} stopped early and "
        f"{states.count(FAILED)} failed"
    )


def _text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.removeprefix('defense.')}={value}" for path, value in values.items())


def write(grid: Grid, store: Store, folder: Path) -> None:
    """Write all trials of the grid's searches into a folder; remove files of searches that the grid no longer has.

    Args:
        grid: as loaded, without the values that were found.
        store: holds the searches that are done.
        folder: results of the grid.
    """
    import pyarrow as pa

    paths = folder / "search.parquet", folder / "search.md"
    jobs = {job.key: job for cell in grid.cells if grid.search and (job := job_of(grid.search, cell))}
    done = [job for job in jobs.values() if store.has("search", job.key)]
    if not grid.search or not done:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    rows = [
        {
            "search": job.key[:12],
            "defense": defense,
            "victim": victim,
            **{name: getattr(job.cell, name) for name in SEEDS},
            "judge": grid.search.judge,
            "knows": level(grid.search, job.cell),
        }
        | {**trial, "values": json.dumps(trial["values"])}
        for job, (defense, victim) in zip(done, labels([job.cell.settings() for job in done]), strict=True)
        for trial in sorted(store.manifest("search", job.key)["trials"], key=rank_trials)
    ]
    write_table(paths[0], pa.Table.from_pylist(rows))
    write_atomically(paths[1], _markdown(rows, grid.search))


def _markdown(rows: Sequence[Mapping[str, Any]], search: Search) -> str:
    numbers = range(search.reports)
    parts = [f"{number + 1}/{search.reports}" for number in numbers]
    head = ["defense", "victim", "attack seed", "defense seed", "judge knows", "value", *parts, "state"]
    lines = []
    for row in rows:
        losses = dict(enumerate(row["losses"]))
        shown = ["–" if losses.get(number) is None else f"{losses[number]:.3f}" for number in numbers]
        state = "**best**" if row["best"] else plain(row["error"] or row["state"])
        cells = [
            code(row["defense"]),
            plain(row["victim"]),
            *(str(row[name]) for name in SEEDS),
            plain(row["knows"]),
            plain(_text(json.loads(row["values"]))),
            *shown,
            state,
        ]
        lines.append(cells)
    return "\n".join(
        [
            "### Learning-rate search",
            "",
            _JUDGES[search.judge].format(rows=search.held_out_rows),
            "",
            "Victim, defense and test do not have the held-out rows. Each trial reports its loss, lower is better, at "
            "these parts of its last training. ASHA stops the worse trials early. The cells above use the best value.",
            "",
            *markdown_table(head, lines, "l" * len(head)),
            "",
        ]
    )
