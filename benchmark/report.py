"""A report: tables, figures and a page that ties them together, all from `rows.parquet`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmark import aggregate, figures, tables
from benchmark.rows import ATTACK_FAILED, FAILED, read
from benchmark.store import write_atomically
from sande.errors import UserError


def write(folder: Path) -> list[str]:
    """Write `tables/`, `figures/` and `README.md` into a results folder.

    Returns:
        The main tables as Markdown, for the terminal.

    Raises:
        UserError: the folder holds no readable rows, or cannot be written.
    """
    table = read(folder)
    entries = aggregate.entries(table)
    try:
        for part in ("tables", "figures"):  # whatever an earlier report had, and this one has not
            shutil.rmtree(folder / part, ignore_errors=True)
        shown = [spec for spec in tables.TABLES if spec.chosen(entries)]
        for spec in shown:
            tables.write(spec, entries, folder / "tables")
        drawn = figures.draw(entries, folder / "figures")
        texts = [tables.markdown(spec, entries) for spec in shown]
        write_atomically(folder / "README.md", _page(table, texts, drawn))
    except OSError as error:
        raise UserError(f"report {folder} cannot be written ({error.strerror}); choose another --results") from None
    return texts


def _page(table: pa.Table, texts: Sequence[str], drawn: Sequence[str]) -> str:
    rows = table.to_pylist()
    grid = rows[0]["grid"]
    alts = {
        "asr": "Bars: attack success rate of each defense with 95 % intervals",
        "asr_utility": "Points: attack success rate of each defense against its change of utility",
    }
    parts = [
        f"# Results of `{grid}`",
        "",
        f"Made by `sande-bench report` from `rows.parquet`; `sande-bench run grids/{grid}.yaml` makes the rows.",
        "",
        *texts,
        *(f"![{alts[name]}](figures/{name}.svg)\n" for name in drawn),
        *_troubles(rows),
        "## Provenance",
        "",
        *_provenance(rows),
        "",
        "## Settings",
        "",
        "Of the first cell, every default spelled out; what varies is in the tables' labels, and all settings of every "
        "cell are in the column `settings` of `rows.parquet`.",
        "",
        "<details><summary>All of them</summary>",
        "",
        "```json",
        json.dumps(json.loads(rows[0]["settings"]), indent=1),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(parts)


def _troubles(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Failed cells with their errors, and victims whose attack did not reach the floor."""
    failed = {row["cell"]: row for row in rows if row["status"] == FAILED}
    weak: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["status"] == ATTACK_FAILED:
            settings = json.loads(row["settings"])
            weak.setdefault(json.dumps([settings[key] for key in ("model", "seed", "data", "attack")]), row)
    lines = []
    if failed:
        lines += ["## Failed cells", ""]
        lines += [
            f"- `{cell}` ({row['model']}, {row['defense']}, seed {row['seed']}): {row['error']}"
            for cell, row in failed.items()
        ]
        lines += ["", "`sande-bench run` on the same grid retries them, and only them.", ""]
    if weak:
        lines += ["## Failed attacks", ""]
        for row in weak.values():
            settings = json.loads(row["settings"])
            lines.append(
                f"- {row['model']} on {row['dataset']}, seed {row['seed']}, `{row['attack']}` at poison rate "
                f"{row['poison_rate']}: ASR {row['victim_asr']:.1f} %, under the floor of "
                f"{settings['asr_floor']:g} %. A weak victim makes every defense look good."
            )
        lines.append("")
    return lines


def _provenance(rows: Sequence[dict[str, Any]]) -> list[str]:
    good = [row for row in rows if row["status"] != FAILED]

    def distinct(column: str) -> str:
        return ", ".join(sorted({str(row[column]) for row in good if row[column] is not None})) or "–"

    attacks = {row["attack_seconds"] for row in good}
    cells, failed = ({row["cell"] for row in chosen} for chosen in (rows, [r for r in rows if r["status"] == FAILED]))
    return [
        f"- Cells: {len(cells)}, of which failed: {len(failed)}",
        f"- Seeds: {distinct('seed')}; prompts or questions a measurement: {distinct('count')}",
        f"- Code: {distinct('code_version')}",
        f"- Device: {distinct('device')}",
        f"- Versions: {distinct('versions')}",
        f"- Measured from {min((row['started_at'] for row in good), default='–')} to "
        f"{max((row['started_at'] for row in good), default='–')}",
        f"- Training of the victims: {', '.join(f'{seconds:.0f} s' for seconds in sorted(attacks)) or '–'}",
    ]
