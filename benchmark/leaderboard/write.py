"""Read results and submissions, and write the leaderboard made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmark.io import plots
from benchmark.io.files import write_atomically, write_table
from benchmark.leaderboard import html as pages
from benchmark.leaderboard.board import MARGIN, Board, Cells, Number, Row, Standing
from benchmark.leaderboard.figure import draw
from benchmark.leaderboard.markdown import NAME, command, markdown, notes, takeaways
from benchmark.leaderboard.mixed import sentences
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.leaderboard.source import Source, owned, read_all
from benchmark.records import erratum, files, mark
from benchmark.records.recovery import RECOVERY
from benchmark.records.rehearsal import WARNING, summary
from benchmark.records.trials import Outcomes
from sande.errors import UserError


def write(
    paths: Sequence[Path],
    out: Path | None,
    html: Path | None = None,
    *,
    margin: float = MARGIN,
    rehearsal: bool = False,
    named: Sequence[Path | str] = (),
) -> str:
    """Write the leaderboard.

    Args:
        paths: results of grids, and files of submitted entries.
        out: folder that gets `leaderboard.md`, `.parquet`, `.png` and `.svg`.
        html: folder that gets pages for a browser, starting at `index.html`, and `leaderboard.parquet`.
        margin: percentage points of utility that a ranked defense may lose.
        rehearsal: accept rows of the random model; the pages then say so.
        named: names of `paths` on the pages, if they differ.

    Returns:
        The page as Markdown, for the terminal.

    Raises:
        UserError: a folder holds no readable rows, an entry has problems, rows are of the random model, there is no
            defense to rank, or a folder cannot be written.
    """
    sources = read_all(paths)
    random = [path for path, source in zip(paths, sources, strict=True) if source.is_random]
    if random and not rehearsal:
        raise UserError(summary(random[0]))
    named, sources = named or paths, owned(sources)
    errata = (line for path, name in zip(paths, named, strict=True) for line in erratum.lines(path, str(name)))
    warned = [*(WARNING if random else ()), *errata]
    made, cells = combined(sources, margin)
    if not made.standings:
        raise UserError(
            f"{', '.join(map(str, paths))}: no defense was measured on a victim whose attack worked; "
            "use results of a grid with a defense and the metrics 'asr' and 'accuracy'"
        )
    entries = [source for source in sources if source.is_entry]
    submitted = {row["defense"]: source.about["Submitted"] for source in entries for row in source.rows}
    page = markdown(made, named, warned, submitted)
    for folder, kind, option in ((out, mark.BOARD, "--out"), (html, mark.PAGES, "--html")):
        if folder:
            mark.claim(folder, kind, option)
            files.check_writable(folder, option)
    if out:
        write_atomically(out / f"{NAME}.md", page)
        _write_parquet(made, out / f"{NAME}.parquet")
        plots.save(draw(made), out, NAME)
    if html:
        with mark.staged(html, mark.PAGES, "--html") as work:
            _write_parquet(made, work / f"{NAME}.parquet")
            _write_pages(made, cells, sources, command(named, margin), work, warned)
    return page


def combined(sources: Sequence[Source], margin: float) -> tuple[Board, Cells]:
    """Return the board of all sources and their rows by cell and metric.

    A cell that several sources have counts once: from results before entries, then from the first.
    """
    sources = owned(sources)
    cells = by_cell(row for source in sources for row in source.rows)
    entries = {row["cell"] for source in sources if source.is_entry for row in source.rows}
    unverified = frozenset[str]().union(*(source.unverified for source in sources))
    outcomes = [source.outcomes for source in sources if source.outcomes is not None]
    table = pa.concat_tables(outcomes).unify_dictionaries() if outcomes else None
    known = Outcomes(table) if table is not None and table.num_rows else None
    made = rank(cells, known, entries=entries, unverified=unverified, margin=margin)
    return replace(made, mixed=tuple(sentences(cells, made.cells))), cells


def _write_pages(
    made: Board, cells: Cells, sources: Sequence[Source], made_by: str, out: Path, warned: Sequence[str]
) -> None:
    """Write the pages for a browser from sources of which each has cells of its own, see `owned`."""
    samples: dict[str, dict[tuple[str, int], Row]] = {}
    about: dict[str, Mapping[str, str]] = {}
    for source in sources:
        for sample in source.samples:
            samples.setdefault(sample["cell"], {}).setdefault((sample["metric"], sample["index"]), sample)
        about |= {row["cell"]: source.about for row in source.rows if source.about}
    of_cell = {cell: list(found.values()) for cell, found in samples.items()}
    pages.write(made, cells, of_cell, about, takeaways(made), notes(made), made_by, out, warned)


def _write_parquet(made: Board, path: Path) -> None:
    of_board = {
        "victim_asr": made.victim_asr,
        "victim_more": _further({RECOVERY: made.recovery} if made.recovery else {}),
        **_columns("twin_asr", made.twin.asr if made.twin else None),
        **_columns("twin_utility_loss", made.twin.loss if made.twin else None),
        "twin_more": _further(made.twin.more if made.twin else {}),
    }
    records = [
        {
            **{name: getattr(one, name) for name in _SCHEMA.names if name in Standing.__slots__},
            # Null where there is a range: counts of several meanings have no mean.
            "tokens": one.tokens[0] if len(one.tokens) == 1 else None,
            "seconds": [{"device": device, "seconds": mean} for device, mean in one.seconds.items()],
            **_columns("asr", one.asr),
            **_columns("fails", one.fails),
            **_columns("utility_loss", one.loss),
            "more": _further(one.more),
            "margin": made.margin,
            **of_board,
            "removal": one.removal,
        }
        for one in made.standings
    ]
    columns = _SCHEMA.append(pa.field("removal", pa.string())) if made.judges_removal else _SCHEMA
    write_table(path, pa.Table.from_pylist(records, schema=columns))


def _further(more: Mapping[str, Number]) -> list[dict[str, Any]]:
    return [{"metric": metric, **asdict(number)} for metric, number in more.items()]


def _columns(name: str, number: Number | None) -> dict[str, float | None]:
    if number is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: number.value, f"{name}_low": number.low, f"{name}_high": number.high}


_NUMBER = [(name, pa.float64()) for name in ("value", "low", "high")]
_MORE = pa.struct([("metric", pa.string()), *_NUMBER, ("victims", pa.int64())])
# docs/leaderboard.md says what each column means.
_SCHEMA = pa.schema(
    [
        ("knows", pa.string()),
        ("rank", pa.int64()),
        ("rank_low", pa.int64()),
        ("rank_high", pa.int64()),
        ("defense", pa.string()),
        ("verified", pa.bool_()),
        ("searched", pa.string()),
        *(
            (f"{name}{part}", pa.float64())
            for name in ("asr", "fails", "utility_loss")
            for part in ("", "_low", "_high")
        ),
        ("utility", pa.string()),
        ("removes", pa.bool_()),
        ("margin", pa.float64()),
        ("more", pa.list_(_MORE)),
        ("seconds", pa.list_(pa.struct([("device", pa.string()), ("seconds", pa.float64())]))),
        ("tokens", pa.float64()),
        ("victims", pa.int64()),
        ("attack_seeds", pa.int64()),
        ("defense_seeds", pa.int64()),
        ("cells", pa.int64()),
        ("gaps", pa.list_(pa.string())),
        ("lacks", pa.list_(pa.string())),
        # Of the board's victims and their twins, the same in each row:
        ("victim_asr", pa.float64()),
        ("victim_more", pa.list_(_MORE)),
        *((f"twin_asr{part}", pa.float64()) for part in ("", "_low", "_high")),
        *((f"twin_utility_loss{part}", pa.float64()) for part in ("", "_low", "_high")),
        ("twin_more", pa.list_(_MORE)),
    ]
)
