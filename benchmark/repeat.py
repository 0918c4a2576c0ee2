"""Train random cells of a grid's results again, and compare the numbers: `sande-bench repeat`.

The cells become a grid of their own, which runs as any other, in a store of its own: nothing is taken from the first
run. Same settings and seeds give the same numbers on the same machine. On another one rounding differs, and a number
should lie within the interval of its row.

RESULTS/repeat-NAME/repeat.md and .parquet compare; the other files there are the results of the second run.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import again, pipeline
from benchmark.execution import provenance
from benchmark.grid.cell import MOST_SEED, SEEDS, Cell, Parser
from benchmark.io.files import write_atomically
from benchmark.io.markdown import code, markdown_table, plain
from benchmark.io.remote import is_uri
from benchmark.leaderboard.verify import chosen, counts
from benchmark.records import files, mark, schema
from benchmark.records import provenance as origins
from benchmark.store.remote import open_store
from sande import bounds
from sande.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "repeat"
_ABOUT = "Cells of {}, to be trained again."


@dataclass(frozen=True, slots=True)
class Repeated:
    """One number of both runs, percent.

    Attributes:
        cell: id of the cell.
        attack, defense: their names.
        attack_seed, defense_seed: of the cell.
        metric: the measurement.
        value, low, high: of the first run, with its 95 % interval; None where it has none.
        again: of the second run; None where it failed.
        within: whether `again` lies within the interval; without an interval, whether it is the value.
    """

    cell: str
    attack: str
    defense: str
    attack_seed: int
    defense_seed: int
    metric: str
    value: float
    low: float | None
    high: float | None
    again: float | None
    within: bool


@dataclass(frozen=True, slots=True)
class Repetition:
    """What a repetition did.

    Attributes:
        numbers: of both runs; empty where the user ended the run.
        cells: cells that were run again.
        of: cells of the results.
        seed: that drew the cells.
        page: path of the comparison, or of what is measured so far.
        interrupted: whether the user ended the run.
    """

    numbers: tuple[Repeated, ...]
    cells: int
    of: int
    seed: int
    page: str
    interrupted: bool = False

    @property
    def summary(self) -> str:
        """Return what was found, in a sentence."""
        within, same = (sum(found) for found in zip(*((one.within, _same(one)) for one in self.numbers), strict=True))
        return (
            f"{self.cells} of {self.of} cells trained again (--seed {self.seed}): {within} of {len(self.numbers)} "
            f"numbers lie within the interval of their row, {same} are the same"
        )

    @property
    def holds(self) -> bool:
        """Return whether every number lies within the interval of its row."""
        return all(one.within for one in self.numbers)


def repeat(
    folder: Path,
    say: Callable[[str], None],
    *,
    share: float,
    store: str,
    results: str,
    seed: int | None = None,
    address: str | None = None,
    assignments: Sequence[str] = (),
) -> Repetition:
    """Run a share of the cells again, compare, and write both.

    Args:
        folder: results of a grid.
        say: receives progress.
        share: of the cells, above 0 and up to 1; at least one cell is run.
        store: folder or URI of artifacts, which holds none of the cells' stages but those of an interrupted repetition;
            the last line of the grid names it.
        results: folder that gets the grid of the cells, and a subfolder with its results.
        seed: draws the cells; None: a random one.
        address: of a running Ray cluster; None starts Ray here.
        assignments: `resources.field=value`, as for a grid.

    Raises:
        UserError: the results cannot be read, are of held-out cells or of code with other settings; the store has what
            is to be trained; or the grid cannot run.
    """
    again.check_results(results, "a repetition")
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: not a share of the cells; set it above 0, and up to 1")
    if odd := next((text for text in assignments if not text.startswith("resources.")), None):
        raise UserError(f"--set {odd}: a repetition changes no cell; set resources.… alone")
    table = files.read_rows(folder)
    seed = secrets.randbelow(MOST_SEED) if seed is None else seed
    drawn = draw(table, share, seed)
    cells = _cells(folder, table, drawn)
    grid = Path(results, f"{NAME}-{folder.resolve().name}-{seed}.yaml")
    about = _ABOUT.format(folder.resolve().name)
    if not _is_trained_in(store, grid):
        _check_store(store, list(cells.values()))
    if made_by := of_other_code(table, drawn):
        say(made_by)
    again.write_grid(list(cells.values()), about, grid)
    write_atomically(grid, f"{grid.read_text(encoding='utf-8')}{_trained_in(store)}\n")
    done = pipeline.run(pipeline.Request(grid, store, results, address, assignments), say, say)
    total = len(table["cell"].unique())
    if done.interrupted:
        return Repetition((), len(cells), total, seed, done.page, interrupted=True)
    place = Path(results, done.name)
    found = compare(table, files.read_rows(place), {old: cell.id for old, cell in cells.items()})
    made = Repetition(found, len(cells), total, seed, str(place / f"{NAME}.md"))
    write(made, folder, place)
    return made


def draw(table: pa.Table, share: float, seed: int) -> list[str]:
    """Return the ids of the cells to run again, sorted.

    Args:
        table: rows of a grid; cells that failed or were not run are left out.
        share: of the cells.
        seed: draws them.

    Raises:
        UserError: no cell has values.
    """
    import pyarrow.compute as pc

    measured = pc.or_(*(pc.equal(table["status"], status) for status in (schema.OK, schema.ATTACK_FAILED)))
    cells = sorted(table["cell"].filter(measured).unique().to_pylist())
    if not cells:
        raise UserError("no cell of these results has values; run their grid first")
    return [cells[number] for number in chosen(len(cells), max(1, math.ceil(share * len(cells))), seed)]


def of_other_code(table: pa.Table, drawn: Sequence[str]) -> str:
    """Return a sentence where other code than today's trained the cells; empty where the same did, or none is known.

    Args:
        table: rows of a grid.
        drawn: ids of the cells to run again.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows, today = table.filter(pc.is_in(table["cell"], pa.array(drawn, pa.string()))), provenance.code_version()
    trained = origins.by_stage(rows, "code_version")
    made_by = {version for stage in ("attacks", "defenses") for version in trained.get(stage, ())}
    if other := sorted(made_by - {today, origins.UNKNOWN}):
        return (
            f"these cells were trained by the code {', '.join(other)}, and today's is {today}: a training whose code "
            "has changed since gives other numbers"
        )
    return ""


def _cells(folder: Path, table: pa.Table, drawn: Sequence[str]) -> dict[str, Cell]:
    """Return the drawn cells by the id that their rows have."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = table.filter(pc.is_in(table["cell"], pa.array(drawn, pa.string())))
    parser, cells = Parser(), dict[str, Cell]()
    for row in rows.select(["cell", "settings", "held_out"]).to_pylist():
        if row["held_out"] is not None:
            raise UserError(
                f"{folder}: its cells are held out; use 'sande-bench run GRID --secret FILE' to repeat them"
            )
        if row["cell"] not in cells:
            try:
                cells[row["cell"]] = parser.cell(json.loads(row["settings"]))
            except UserError as error:
                raise UserError(f"{folder}: cell {row['cell']} is of another version of the code: {error}") from None
    return cells


def _trained_in(store: str) -> str:
    """Return the last line of a repetition's grid, a comment that names the store."""
    return f"# Trained in the store {json.dumps(store if is_uri(store) else str(Path(store).resolve()))}"


def _is_trained_in(store: str, grid: Path) -> bool:
    """Return whether the grid is of an earlier repetition in this store, whose stages are not of the first run."""
    try:
        return grid.is_file() and bounds.read(grid).decode().splitlines()[-1:] == [_trained_in(store)]
    except (OSError, UnicodeDecodeError):
        return False


def _check_store(store: str, cells: Sequence[Cell]) -> None:
    """Refuse a place that is no store, and a store from which the first run's numbers would come again."""
    from benchmark.plan.plan import make_plan

    again.check_store(store)
    if done := make_plan(cells, open_store(store, create=False)).done:
        raise UserError(
            f"--store {store}: it has {len(done)} of the stages, which would not be trained again; use a new one"
        )


def compare(first: pa.Table, second: pa.Table, cells: Mapping[str, str]) -> tuple[Repeated, ...]:
    """Return the numbers of the cells in both runs.

    Args:
        first: rows of the first run.
        second: rows of the second.
        cells: id in the second run by that in the first.
    """
    again = {(row["cell"], row["metric"]): row["value"] for row in second.to_pylist()}
    found = []
    for row in first.to_pylist():
        if row["cell"] in cells and row["value"] is not None and counts(row["metric"]):
            value = again.get((cells[row["cell"]], row["metric"]))
            found.append(
                Repeated(
                    **{name: row[name] for name in ("cell", "attack", "defense", *SEEDS, "metric", "value")},
                    low=row["ci_low"],
                    high=row["ci_high"],
                    again=value,
                    within=value is not None and _within(value, row),
                )
            )
    return tuple(found)


def _within(value: float, row: Mapping[str, Any]) -> bool:
    low, high = (row["value"] if row[name] is None else row[name] for name in ("ci_low", "ci_high"))
    return bool(low - 1e-9 <= value <= high + 1e-9)


def _same(one: Repeated) -> bool:
    return one.again is not None and abs(one.again - one.value) < 1e-9


def write(made: Repetition, folder: Path, place: Path) -> None:
    """Write the comparison into the results folder of the second run.

    Args:
        made: what was found.
        folder: results of the first run.
        place: results of the second.
    """
    body = [
        [
            code(one.cell),
            plain(f"{one.attack}, seed {one.attack_seed}"),
            plain(f"{one.defense}, seed {one.defense_seed}"),
            plain(one.metric),
            f"{one.value:.1f}" + ("" if one.low is None else f" ({one.low:.1f} to {one.high:.1f})"),
            "failed" if one.again is None else f"{one.again:.1f}",
            "yes" if one.within else "**no**",
        ]
        for one in made.numbers
    ]
    header = ["Cell", "Attack", "Defense", "Metric", "First run (%)", "Second run (%)", "Within"]
    lines = [
        f"# Cells of {code(folder.resolve().name)}, trained again",
        "",
        f"{plain(made.summary)}. Intervals are of one model, at 95 %.",
        "",
        *markdown_table(header, body, "llllrrl"),
        "",
    ]
    mark.claim(place, mark.REPETITION, "--results")
    write_atomically(place / f"{NAME}.md", "\n".join(lines))
    files.write_records(made.numbers, Repeated, place / f"{NAME}.parquet")
