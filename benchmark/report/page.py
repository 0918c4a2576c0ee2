"""The report of a results folder: tables, figures and a page, made from `rows.parquet` and `outcomes.parquet`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.grid import prompt_format
from benchmark.grid.cell import SEEDS
from benchmark.grid.labels import TWIN, usual
from benchmark.grid.sources import SEPARATOR
from benchmark.io import plots
from benchmark.io.files import write_atomically
from benchmark.io.markdown import code, inert, plain
from benchmark.records import aggregate, erratum, mark, provenance, record, recovery
from benchmark.records.aggregate import TableEntry
from benchmark.records.files import of_failed_cells, read_results
from benchmark.records.record import Record
from benchmark.records.schema import ATTACK_FAILED, COMPUTED_WITH, FAILED, NOT_RUN, STAGES
from benchmark.records.trials import Outcomes
from benchmark.report import case_study, certificates, figures, headline, tables
from benchmark.report.layouts import in_order, layout
from benchmark.report.tables import Table
from sande import bounds, registry
from sande.errors import UserError
from sande.models.catalog import TERMS

SEARCH_HEADLINE = "### Learning-rate search"  # of search.md
_MORE = {
    "detection.md": "what detectors find in these models",
    "comparison.md": "comparison with the paper",
    "leaderboard/leaderboard.md": "ranking of the defenses",
    "board/index.html": "ranking of the defenses for a browser",
}


def write(folder: Path) -> list[str]:
    """Write `tables/`, `figures/` and `README.md` into a results folder.

    Returns:
        The tables as Markdown, for the terminal.

    Raises:
        UserError: as `read_results`, or the folder cannot be written.
    """
    table, outcomes = read_results(folder)
    parts = in_order(aggregate.parts(table))
    try:
        with mark.staged(folder, mark.RESULTS) as work:
            for kind in ("tables", "figures"):
                (work / kind).mkdir()
            results = aggregate.Results(table, Outcomes(outcomes) if outcomes.num_rows else None)
            texts = []
            for part in parts:
                arranged = layout(part)
                entries = arranged.arrange(recovery.judged(results.entries(part, arranged.label)))
                answers = case_study.answers(table, outcomes, part)
                texts += _section(work, part, entries, answers, prefix="" if len(parts) == 1 else f"{part}_")
            certified = table.filter(pc.is_valid(table["certificate"]))
            of_asr = pc.equal(certified["metric"], "asr")
            certified = pa.concat_tables([certified.filter(of_asr), certified.filter(pc.invert(of_asr))])
            if shown := certificates.table(_firsts(certified, "cell")):
                texts.append(shown)
            search = folder / "search.md"
            if search.is_file():  # see `benchmark.search.report`
                texts.append(inert(bounds.read(search).decode(errors="replace"), SEARCH_HEADLINE))
            opening = [*erratum.lines(folder), *_more(folder)]
            page = _page(table, [*opening, *texts], record.read(folder), with_outcomes=bool(outcomes.num_rows))
            write_atomically(work / "README.md", page)
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written ({error.strerror}); make the folder writable"
        ) from None
    return [text for text in texts if text.startswith("#")]


def _section(
    folder: Path, part: str, entries: list[TableEntry], answers: list[dict[str, Any]], prefix: str
) -> list[str]:
    """Write the tables and figures of one grid, and return their parts of the page.

    With several grids, files that have no number in the paper have a prefix, and the grid has a heading.
    """
    arranged = layout(part)

    def written(specs: Sequence[Table]) -> list[str]:
        shown = [spec for spec in specs if spec.chosen(entries)]
        return [tables.write(spec, entries, folder / "tables", part, _file(spec.name, prefix)) for spec in shown]

    texts = [f"## {arranged.title or plain(part)}\n"] if prefix else []
    texts += [f"{text}\n" for text in headline.lines(entries)]
    if arranged.label is None:
        texts += _labels(entries)
    texts += written(arranged.tables)
    if answers:
        texts.append(case_study.write(answers, folder / "tables", _file(arranged.cases, prefix)))
    for name in arranged.figures:
        figure = figures.draw(name, entries)
        if figure is not None:
            plots.save(figure, folder / "figures", _file(name, prefix))
            texts.append(f"![{figures.SHOWS[name]}](figures/{quote(_file(name, prefix))}.svg)\n")
    if details := written(arranged.details):
        texts.append("\n".join(["<details><summary>Details</summary>", "", *details, "</details>", ""]))
    return texts


def _labels(entries: Sequence[TableEntry]) -> list[str]:
    """Return a paragraph on what the labels of the tables leave out, and on clean twins; nothing without either."""
    cells = [json.loads(text) for text in {entry.row["settings"]: None for entry in entries}]
    without_seeds = ({name: value for name, value in cell.items() if name not in SEEDS} for cell in cells)
    distinct = {json.dumps(cell, sort_keys=True): cell for cell in without_seeds}
    left_out = usual(list(distinct.values()))
    parts = [f"{code(name) if name else 'victims'} {plain(values)}" for name, values in left_out.items()]
    sentences = [f"Labels leave out the most frequent settings: {'; '.join(parts)}."] if parts else []
    if any(entry.victim.endswith(TWIN) for entry in entries):
        sentences.append(f"A {TWIN} is trained as its victim is, on the same rows without poison.")
    return [" ".join(sentences) + "\n"] if sentences else []


def _file(name: str, prefix: str) -> str:
    return name if name.startswith(("table_", "figure_")) else prefix + name


def _more(folder: Path) -> list[str]:
    """Return a line with links to the folder's other pages, which other commands write; nothing without any."""
    links = [f"[{title}]({name})" for name, title in _MORE.items() if (folder / name).is_file()]
    return [f"Further pages: {', '.join(links)}.\n"] if links else []


def _page(table: pa.Table, texts: Sequence[str], made: Record | None, *, with_outcomes: bool) -> str:
    (first,) = table.slice(0, 1).to_pylist()
    made = made or record.derived(first)
    lines = [
        f"# Results of {code(first['grid'])}",
        "",
        *_terms(table),
        *texts,
        *_troubles(table),
        "## Provenance",
        "",
        _origin(made, with_outcomes=with_outcomes),
        "",
        *_provenance(table, from_one_store=not made.is_joined),
        "",
        "## Settings",
        "",
        "Settings of the first cell, defaults included. Settings that vary are in the labels of the tables; column "
        "`settings` of `rows.parquet` has all settings of every cell.",
        "",
        "<details><summary>All settings</summary>",
        "",
        "```json",
        json.dumps(json.loads(first["settings"]), indent=1),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)


def _terms(table: pa.Table) -> list[str]:
    """Return the terms that come with the models, each with an empty line."""
    models = sorted(set(table["model"].to_pylist()) & set(TERMS))
    return [line for model in models for line in (f"{model}: {TERMS[model]}", "")]


def _origin(made: Record, *, with_outcomes: bool) -> str:
    """Return a sentence on the files and the command that a page is made from."""
    files = "`rows.parquet` and `outcomes.parquet`" if with_outcomes else "`rows.parquet`"
    if made.recorded:
        left_out = f" Left out: {plain('; '.join(made.left_out))}." if made.left_out else ""
        return (
            f"Made by `sande-bench report` from {files}, which {code(made.command)} made with the code named here."
            f"{left_out}"
        )
    return (
        f"Made by `sande-bench report` from {files}. Their run recorded no command; the name of the grid "
        f"suggests {code(made.command)}."
    )


def _computed_with(table: pa.Table) -> list[str]:
    """Return lines on the compute type and instruction set of each kind of stage, with a warning if types are mixed.

    Args:
        table: of rows of cells that did not fail, at least these columns.
    """
    lines, types = [], set()
    for stage, prefix in (("Attacks", "attack_"), ("Defenses", "defense_"), ("Evaluations", "")):
        columns = [f"{prefix}{name}" for name in COMPUTED_WITH]
        found = table.select(columns).group_by(columns).aggregate([]).to_pylist()
        pairs = sorted((row[columns[0]], row[columns[1]]) for row in found if row[columns[0]])
        if pairs:
            lines.append(
                f"- {stage} computed in {', '.join(f'{plain(kind)} ({plain(where)})' for kind, where in pairs)}"
            )
            types |= {kind for kind, _ in pairs}
    if len(types) > 1:
        lines.append(
            "- **Compute types are mixed.** They round differently, which can change a result as much as another seed. "
            "`precision: bf16` or `fp32` in a grid sets one type for its trainings."
        )
    return lines


def _troubles(table: pa.Table) -> list[str]:
    """Return sections on cells that were not run, failed cells with their errors, and victims under the ASR floor."""
    left = table["cell"].filter(pc.equal(table["status"], NOT_RUN)).unique()
    failed = _firsts(table.filter(of_failed_cells(table)), "cell")
    weak = _weak(table.filter(pc.equal(table["status"], ATTACK_FAILED)))
    lines = []
    if len(left):
        lines += [
            "## Not run",
            "",
            f"The run was interrupted: {len(left)} of {len(table['cell'].unique())} cells are not finished. "
            "The same command continues it.",
            "",
        ]
    if failed:
        lines += ["## Failed cells", ""]
        lines += [
            f"- {code(row['cell'])} ({plain(row['model'])}, {plain(row['defense'])}, {_seeds(row)}): "
            f"{plain(row['error'])}"
            for row in failed
        ]
        lines += ["", "`sande-bench run` on the same grid retries only these.", ""]
    if weak:
        lines += ["## Failed attacks", ""]
        lines += [
            f"- {plain(row['model'])} on {plain(row['dataset'])}, seed {row['attack_seed']}, "
            f"{code(row['attack'] or '')} at poison rate {row['poison_rate']}: {row['strength']}, under "
            f"the floor of {row['floor']:g} %. A weak victim makes every defense look good."
            for row in weak
        ]
        lines.append("")
    return lines


def _weak(table: pa.Table) -> list[dict[str, Any]]:
    """Return a row for each victim under its floor, with the floor and, in words, its `strength`.

    Args:
        table: rows of failed attacks.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in _firsts(table, "settings"):
        settings = json.loads(row["settings"])
        keys = "model", "attack_seed", "data", "attack", prompt_format.SETTING
        found.setdefault(json.dumps([settings.get(key) for key in keys]), row | {"floor": settings["asr_floor"]})
    for row in found.values():
        shown = registry.shown_by(row["attack"] or "")
        same = pc.and_(pc.equal(table["cell"], row["cell"]), pc.equal(table["metric"], shown))
        values = [] if shown == "asr" else table["victim_value"].filter(same).drop_null().to_pylist()
        row["strength"] = f"{code(shown)} {values[0]:.1f} %" if values else f"ASR {row['victim_asr']:.1f} %"
    return list(found.values())


def _seeds(row: Mapping[str, Any]) -> str:
    attack, defense = (row[name] for name in SEEDS)
    return f"seed {attack}" if attack == defense else f"seeds {attack} and {defense}"


def _firsts(table: pa.Table, column: str) -> list[dict[str, Any]]:
    """Return the first row of each distinct value, in the order of the rows."""
    import numpy as np

    codes = table[column].combine_chunks().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    rows: list[dict[str, Any]] = table.take(np.sort(first)).to_pylist()
    return rows


def _fewer_prompts(table: pa.Table) -> list[str]:
    """Return a line if fewer test prompts fit the limits of a data set than were asked for."""
    measured = table.filter(pc.equal(table["metric"], "asr")).select(["dataset", "count", "settings"])
    found: dict[str, None] = {}
    for row in measured.group_by(measured.column_names).aggregate([]).sort_by("count").to_pylist():
        settings = json.loads(row["settings"])
        limits = [each.get("prompts") for each in settings.get("metrics", ()) if each["name"] == "asr"]
        asked = min((limit for limit in [*limits, settings["data"].get("test_rows")] if limit), default=0)
        if row["count"] < asked:
            found[f"{plain(row['dataset'])} {row['count']} of {asked}"] = None
    line = f"- **Fewer test prompts than asked for**, within the limits on tokens: {', '.join(found)}"
    return [line] if found else []


def _sources(of_cells: Sequence[str]) -> list[str]:
    """Return a line that names models and data, with what identifies their content; none where rows do not say it."""
    found = sorted({source for text in of_cells for source in text.split(SEPARATOR)})
    return [f"- Models and data: {', '.join(map(plain, found))}"] if found else []


def _provenance(table: pa.Table, *, from_one_store: bool) -> list[str]:
    without, left = (pc.equal(table["status"], status) for status in (FAILED, NOT_RUN))
    good = pc.invert(pc.or_(without, left))
    failed, not_run = (len(table["cell"].filter(rows).unique()) for rows in (of_failed_cells(table), left))

    def distinct(column: str) -> list[Any]:
        found: list[Any] = table[column].filter(good).drop_null().unique().to_pylist()
        return found

    def written(*columns: str) -> str:
        return ", ".join(sorted({plain(value) for column in columns for value in distinct(column)})) or "–"

    def of_stages(name: str) -> str:
        return written(*(f"{stage}{name}" for stage in STAGES))

    attacks, began = distinct("attack_seconds"), distinct("started_at")
    return [
        f"- Cells: {len(table['cell'].unique())}, of which failed: {failed}"
        f"{f', not finished: {not_run}' if not_run else ''}",
        f"- Seeds of attacks: {written('attack_seed')}; of defenses: {written('defense_seed')}",
        f"- Prompts or questions per measurement: {written('count')}",
        *_fewer_prompts(table.filter(good)),
        f"- Code: {of_stages('code_version')}",
        f"- Device: {provenance.device_name(of_stages('device'))}",
        *_computed_with(table.select([f"{stage}{name}" for stage in STAGES for name in COMPUTED_WITH]).filter(good)),
        f"- Versions: {of_stages('versions')}",
        *_sources(distinct("sources")),
        *(f"- **Mixed:** {plain(sentence)}" for sentence in provenance.mixtures(table, from_one_store)),
        f"- Measured from {plain(min(began, default='–'))} to {plain(max(began, default='–'))}",
        f"- Victims trained: {len(attacks)}, in {sum(attacks):,.0f} s",
    ]
