"""Read results and submissions, and write the leaderboard made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.io import plots
from benchmark.io.files import write_atomically
from benchmark.leaderboard import html as pages
from benchmark.leaderboard.board import Board, Cells, Row, Standing
from benchmark.leaderboard.figure import draw
from benchmark.leaderboard.markdown import NAME, command, markdown, notes
from benchmark.leaderboard.rank import by_cell, rank
from benchmark.leaderboard.source import Source, read_all
from benchmark.records import files
from benchmark.records.rehearsal import WARNING, summary
from sande.errors import UserError


def write(
    paths: Sequence[Path],
    out: Path | None,
    html: Path | None = None,
    *,
    rehearsal: bool = False,
    named: Sequence[Path] = (),
) -> str:
    """Write the leaderboard.

    Args:
        paths: results of grids, and files of submitted entries.
        out: folder that gets `leaderboard.md`, `.parquet`, `.png` and `.svg`.
        html: folder that gets pages for a browser, starting at `index.html`, and `leaderboard.parquet`.
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
    warned, named = WARNING if random else (), named or paths
    cells = by_cell(row for source in sources for row in source.rows)
    made = rank(cells)
    if not made.standings:
        raise UserError(
            f"{', '.join(map(str, paths))}: no defense has both an ASR and a utility on a victim whose attack worked; "
            "use results of a grid whose metrics include 'accuracy'"
        )
    page = markdown(made, named, warned)
    for folder, option in ((out, "--out"), (html, "--html")):
        if folder:
            files.check_writable(folder, option)
    if out:
        write_atomically(out / f"{NAME}.md", page)
        _write_parquet(made, out / f"{NAME}.parquet")
        plots.save(draw(made), out, NAME)
    if html:
        _write_parquet(made, html / f"{NAME}.parquet")
        _write_pages(made, cells, sources, command(named), html, warned)
    return page


def _write_pages(
    made: Board, cells: Cells, sources: Sequence[Source], made_by: str, out: Path, warned: Sequence[str]
) -> None:
    """Write the pages for a browser; of a cell that several sources have, the first source counts."""
    samples: dict[str, dict[tuple[str, int], Row]] = {}
    about: dict[str, Mapping[str, str]] = {}
    seen: set[str] = set()
    for source in sources:
        for sample in source.samples:
            samples.setdefault(sample["cell"], {}).setdefault((sample["metric"], sample["index"]), sample)
        own = {row["cell"] for row in source.rows} - seen
        seen |= own
        about |= dict.fromkeys(own, source.about) if source.about else {}
    of_cell = {cell: list(found.values()) for cell, found in samples.items()}
    pages.write(made, cells, of_cell, about, notes(made), made_by, out, warned)


def _write_parquet(made: Board, path: Path) -> None:
    records = [
        {
            **{name: getattr(standing, name) for name in _SCHEMA.names if name in Standing.__slots__},
            "seconds": [{"device": device, "seconds": mean} for device, mean in standing.seconds.items()],
            "asr": standing.asr.value,
            "asr_low": standing.asr.low,
            "asr_high": standing.asr.high,
            "utility_loss": standing.loss.value,
            "utility_loss_low": standing.loss.low,
            "utility_loss_high": standing.loss.high,
            "more": [{"metric": metric, **asdict(number)} for metric, number in standing.more.items()],
        }
        for standing in made.standings
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


_MORE = pa.struct([("metric", pa.string()), *((name, pa.float64()) for name in ("value", "low", "high"))])
_SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),
        ("front", pa.int64()),
        ("defense", pa.string()),
        ("knows", pa.string()),
        ("asr", pa.float64()),  # percent
        ("asr_low", pa.float64()),  # 95 % interval
        ("asr_high", pa.float64()),
        ("utility_loss", pa.float64()),  # percentage points
        ("utility_loss_low", pa.float64()),
        ("utility_loss_high", pa.float64()),
        ("more", pa.list_(_MORE)),  # other metrics of the backdoor, percent
        ("seconds", pa.list_(pa.struct([("device", pa.string()), ("seconds", pa.float64())]))),  # mean of a defense
        ("tokens", pa.float64()),  # mean of a defense
        ("victims", pa.int64()),
        ("seeds", pa.int64()),
        ("cells", pa.int64()),
        ("lacks", pa.list_(pa.string())),
    ]
)
