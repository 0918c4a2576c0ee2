"""Result rows: one a cell and metric, tidy, with settings and provenance; what every table and figure is made from.

Beside them the outcome of every prompt and question, so that any statistic can be recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark import keeping
from benchmark.cell import DEFAULTS, NO_DEFENSE, Cell, Method
from benchmark.failures import INTERRUPTED, UNFINISHED, kind_of
from benchmark.files import atomically, clear_parts, write_atomically
from benchmark.plan import stages_of, victim_of
from benchmark.store_protocol import Store
from sande import registry
from sande.errors import UserError
from sande.statistics import mean_interval, wilson

OK, ATTACK_FAILED, FAILED, NOT_RUN = "ok", "attack_failed", "failed", "not_run"

# So many rows and outcomes are held while they are written, whatever the number of cells. A row has kilobytes.
ROW_GROUP, OUTCOME_GROUP = 2**14, 2**19

# What a stage computed with, and how the columns of each stage begin.
COMPUTED_WITH = ("compute_type", "instruction_set")
_STAGES = ("attack_", "defense_", "")

SCHEMA = pa.schema(
    [
        ("grid", pa.string()),
        ("grids", pa.list_(pa.string())),  # the grid files it belongs to; several where a grid includes others
        ("scale", pa.string()),
        ("cell", pa.string()),  # hash of the cell's settings
        ("status", pa.string()),  # ok, attack_failed (the victim's ASR is under the cell's floor), failed, not_run
        ("error", pa.string()),
        ("failure", pa.string()),  # of which kind the error is, see `benchmark.failures`
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # the victim's
        ("removal_dataset", pa.string()),
        ("setting", pa.string()),  # in-domain, out-of-domain
        ("attack", pa.string()),
        ("trigger", pa.string()),
        ("response", pa.string()),
        ("poison_rate", pa.float64()),
        ("defense", pa.string()),
        ("knows", pa.string()),  # what the defense must know about the backdoor, or the model before it
        ("parrot_position", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),  # percent
        ("ci_low", pa.float64()),  # 95 %, percent: Wilson for a share, Student-t for a mean
        ("ci_high", pa.float64()),
        ("count", pa.int64()),  # prompts or questions
        ("victim_value", pa.float64()),  # the same metric on the victim, percent
        ("victim_asr", pa.float64()),  # percent; what status attack_failed is about
        ("seconds", pa.float64()),  # of the defense; 0 where there is none
        ("tokens", pa.int64()),  # trained on by the defense
        ("peak_memory_bytes", pa.int64()),  # of the defense
        ("attack_seconds", pa.float64()),
        ("attack_tokens", pa.int64()),
        ("metric_seconds", pa.float64()),
        # What each stage computed with: bf16 or fp32, and the vector instructions of the processor or the kind of GPU.
        ("attack_compute_type", pa.string()),
        ("attack_instruction_set", pa.string()),
        ("defense_compute_type", pa.string()),  # null where there is no defense
        ("defense_instruction_set", pa.string()),
        ("compute_type", pa.string()),  # of the evaluation, as the columns that follow
        ("instruction_set", pa.string()),
        ("device", pa.string()),
        ("code_version", pa.string()),
        ("versions", pa.string()),  # of Python and the libraries that compute
        ("started_at", pa.string()),
        ("settings", pa.string()),  # all of the cell's, as JSON
    ]
)


# What happened in each trial of a cell's measurements.
OUTCOMES = pa.schema(
    [
        ("cell", pa.string()),
        ("metric", pa.string()),
        ("index", pa.int64()),  # of the prompt or question
        ("outcome", pa.float64()),  # 1 where true, 0 where false, or a number between
        ("record", pa.string()),  # JSON, of measurements that publish theirs
    ]
)


_Manifest = Callable[[str, str], dict[str, Any]]  # of a kind and a key


def build(
    grid: str,
    cells: Iterable[Cell],
    store: Store,
    errors: Mapping[str, str],
    parts: Mapping[str, Sequence[str]] | None = None,
    scale: str = "",
    unknown: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all cells, failed ones and those that are not run included, cell by cell.

    Args:
        grid: its name.
        cells: done in the store, or with a stage among `errors`.
        store: artifacts.
        errors: one line for each stage that failed, by key.
        parts: by cell id the grid files that the cell belongs to; left out, the grid itself.
        scale: at which the grid was expanded.
        unknown: ids of cells whose settings a search still has to find, so that nothing in the store is theirs.
    """
    # A victim's is asked for by every cell that it serves.
    manifest = lru_cache(maxsize=1024)(partial(keeping.manifest, store))
    for cell in cells:
        base = {"grid": grid, "grids": list((parts or {}).get(cell.id, (grid,))), "scale": scale}
        is_known = cell.id not in unknown
        yield from (base | row for row in _cell_rows(cell, store, manifest, errors, is_known=is_known))


def outcomes(cells: Iterable[Cell], store: Store) -> Iterator[pa.Table]:
    """The outcomes of all cells that are done, a table of schema `OUTCOMES` for each of their metrics."""
    for cell in cells:
        for metric in cell.metrics:
            key = cell.evaluation_key(metric)
            if store.has("evaluate", key):
                published = [m["name"] for m in store.manifest("evaluate", key)["measurements"] if m["published"]]
                # Of so small a file `pq.read_table` takes thrice the time.
                with pq.ParquetFile(store.read("evaluate", key) / "outcomes.parquet") as file:
                    found = file.read(use_threads=False)
                shown = pc.is_in(found["metric"], value_set=pa.array(published, pa.string()))
                columns = {
                    "cell": pa.array([cell.id] * found.num_rows, pa.string()),
                    "metric": found["metric"],
                    "index": found["index"],
                    "outcome": found["outcome"],
                    "record": pc.if_else(shown, found["record"].cast(pa.string()), pa.scalar(None, pa.string())),
                }
                yield pa.table(columns, schema=OUTCOMES)


def _cell_rows(
    cell: Cell, store: Store, manifest: _Manifest, errors: Mapping[str, str], *, is_known: bool
) -> list[dict[str, Any]]:
    found = [errors[stage.key] for stage in _needed(cell) if stage.key in errors] if errors else []
    failed = next((error for error in found if kind_of(error) != INTERRUPTED), None)
    base = {
        "cell": cell.id,
        "seed": cell.seed,
        "model": cell.model,
        "dataset": cell.data.name,
        "removal_dataset": cell.removal.name,
        "setting": cell.setting,
        "attack": cell.attack.name,
        "trigger": cell.attack.config.backdoor.trigger,
        "response": cell.attack.config.backdoor.response,
        "poison_rate": getattr(cell.attack.config, "poison_rate", None),
        "defense": cell.defense.name,
        "knows": registry.knowledge(cell.defense.name).label,
        "parrot_position": getattr(cell.defense.config, "parrot_position", None),
        "settings": json.dumps(cell.settings(), sort_keys=True),
    }
    if failed:
        return _without_value(base | {"status": FAILED, "error": str(failed), "failure": kind_of(failed)}, cell.metrics)
    measured = _measured(cell, store) if found and is_known else () if found else cell.metrics
    rows = _measured_rows(base, cell, measured, manifest) if measured else []
    not_run = base | {"status": NOT_RUN, "error": str(UNFINISHED), "failure": INTERRUPTED}
    left = [metric for metric in cell.metrics if metric not in measured]
    return rows + _without_value(not_run, left)


def _without_value(base: dict[str, Any], metrics: Iterable[Method]) -> list[dict[str, Any]]:
    names = (name for metric in metrics for name in registry.entry("metrics", metric.name).names(metric.config))
    return [base | {"metric": name} for name in names]


def _measured(cell: Cell, store: Store) -> tuple[Method, ...]:
    """Return the metrics of an unfinished cell that are in the store, for the cell and for its victim.

    None are, where the store lacks the manifest of a training, or the ASR of the victim, which every row tells.
    """
    victim = victim_of(cell)
    trained = [("attack", cell.attack_key)]
    if cell.defense.name != NO_DEFENSE:
        trained.append(("defend", cell.defense_key))
    if not all(store.has(keeping.kind_of(store, kind, key), key) for kind, key in trained):
        return ()
    found = tuple(
        metric
        for metric in cell.metrics
        if all(store.has("evaluate", each.evaluation_key(metric)) for each in (victim, cell))
    )
    return found if any(metric.name == "asr" for metric in found) else ()


def _measured_rows(
    base: dict[str, Any], cell: Cell, metrics: Iterable[Method], manifest: _Manifest
) -> list[dict[str, Any]]:
    metrics = tuple(metrics)
    victim = victim_of(cell)
    attack = manifest("attack", cell.attack_key)
    training = None if cell.defense.name == NO_DEFENSE else manifest("defend", cell.defense_key)
    victim_values = {
        m["name"]: 100 * m["successes"] / m["count"]
        for metric in metrics
        for m in manifest("evaluate", victim.evaluation_key(metric))["measurements"]
    }
    base |= {
        # A twin, of which nothing was poisoned, is no failed attack.
        "status": OK if base["poison_rate"] == 0 or victim_values["asr"] >= cell.asr_floor else ATTACK_FAILED,
        "victim_asr": victim_values["asr"],
        "seconds": training["seconds"] if training else 0.0,
        "tokens": training["tokens"] if training else 0,
        "peak_memory_bytes": training["peak_memory_bytes"] if training else 0,
        "attack_seconds": attack["seconds"],
        "attack_tokens": attack["tokens"],
        **_computed_with("attack_", attack),
        **_computed_with("defense_", training),
    }
    return [row for metric in metrics for row in _metric_rows(base, cell, metric, manifest, victim_values)]


def _metric_rows(
    base: dict[str, Any], cell: Cell, metric: Method, manifest: _Manifest, victim_values: Mapping[str, float]
) -> list[dict[str, Any]]:
    evaluation = manifest("evaluate", cell.evaluation_key(metric))
    rows = []
    for measured in evaluation["measurements"]:
        low, high = _interval(measured)
        rows.append(
            base
            | {
                "metric": measured["name"],
                "value": 100 * measured["successes"] / measured["count"],
                "ci_low": low,
                "ci_high": high,
                "count": measured["count"],
                "victim_value": victim_values.get(measured["name"]),
                "metric_seconds": evaluation["seconds"],
                **_computed_with("", evaluation),
                "device": evaluation["device"],
                "code_version": evaluation["code_version"],
                "versions": ", ".join(f"{name} {number}" for name, number in evaluation["versions"].items()),
                "started_at": evaluation["started_at"],
            }
        )
    return rows


def _computed_with(prefix: str, manifest: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return compute type and instruction set of a stage; null of none, and of one from before they were recorded."""
    return {f"{prefix}{name}": (manifest or {}).get(name) for name in COMPUTED_WITH}


def _interval(measured: Mapping[str, Any]) -> tuple[float, float]:
    if "deviation" in measured:
        return mean_interval(measured["successes"] / measured["count"], measured["deviation"], measured["count"])
    return wilson(measured["successes"], measured["count"])


def _needed(cell: Cell) -> list[Any]:
    return [*stages_of(victim_of(cell)), *stages_of(cell)]


def check_writable(folder: Path, option: str = "--results") -> None:
    """Make the folder and try it, so that hours of work are not followed by a refusal.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink(missing_ok=True)
        clear_parts(folder)
    except OSError as error:
        raise UserError(
            f"results folder {folder} cannot be written ({error.strerror}); choose another {option}"
        ) from None


def write(rows: Iterable[dict[str, Any]], outcomes: Iterable[pa.Table], folder: Path) -> int:
    """Write `rows.parquet` and `outcomes.parquet` as they come, each file whole or not at all.

    Args:
        rows: of any number of cells.
        outcomes: of the same cells, in tables of schema `OUTCOMES`.
        folder: of the results.

    Returns:
        How many cells failed.
    """
    failed: set[str] = set()

    def tables() -> Iterator[pa.Table]:
        left = iter(rows)
        while some := list(islice(left, ROW_GROUP)):
            failed.update(row["cell"] for row in some if row["status"] == FAILED)
            yield pa.Table.from_pylist(some, schema=SCHEMA)

    write_tables(tables(), SCHEMA, folder / "rows.parquet", ROW_GROUP)
    write_tables(outcomes, OUTCOMES, folder / "outcomes.parquet", OUTCOME_GROUP)
    return len(failed)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, group: int) -> None:
    """Write tables into one file, whole or not at all, as they come.

    Args:
        tables: of the schema.
        schema: of the file.
        path: of the file.
        group: a row group is written as soon as it has so many rows; no more than that and a table are held.
    """
    held, count = [schema.empty_table()], 0
    # The limit lets each settings stand once in a row group: a dictionary that grows over it is given up.
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**26, "write_page_checksum": True}
    with atomically(path) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for table in tables:
            held.append(table)
            count += table.num_rows
            if count >= group:
                writer.write_table(pa.concat_tables(held))
                held, count = [], 0
        if held:
            writer.write_table(pa.concat_tables(held))


def _without_values(table: pa.Table) -> pa.ChunkedArray:
    """Return for each row whether it failed or was not run."""
    return pc.or_(pc.equal(table["status"], FAILED), pc.equal(table["status"], NOT_RUN))


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds the rows of a run that was not interrupted; False where there are none."""
    try:
        table = read(folder)
    except UserError:
        return False
    statuses = pc.unique(table["status"]).to_pylist()
    return NOT_RUN not in statuses and INTERRUPTED not in pc.unique(table["failure"]).to_pylist()


def read_outcomes(folder: Path) -> pa.Table:
    """The outcomes beside the rows, with strings as `read` gives them; none where the folder has no such file.

    Raises:
        UserError: the file is not of this schema.
    """
    path = folder / "outcomes.parquet"
    return _read(path, OUTCOMES) if path.is_file() else _encoded(OUTCOMES).empty_table()


def read(folder: Path) -> pa.Table:
    """The rows of a finished or partly failed grid.

    Strings are dictionary-encoded: a million rows hold few distinct ones, and settings of kilobytes.

    Raises:
        UserError: there are none, or the file is not of this schema.
    """
    path = folder / "rows.parquet"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no rows.parquet; give the folder of a grid that was run, such as results/quickstart"
        )
    return read_file(path)


def read_file(path: Path) -> pa.Table:
    """The rows in one file, as `read` gives them.

    Raises:
        UserError: there are none, or the file is not of this schema.
    """
    table = _read(path, SCHEMA)
    if not table.num_rows:
        raise UserError(f"{path} holds no rows; run its grid again to write it anew")
    if wrong := _wrong(table):
        raise UserError(f"{path} is damaged ({wrong}); run its grid again to write it anew")
    return table


def _wrong(table: pa.Table) -> str | None:
    """What a schema cannot say of rows, and whoever reads them relies on."""
    for name in ("grid", "cell", "status", "seed", "defense", "metric", "settings"):
        if table[name].null_count:
            return f"column '{name}' has gaps"
    grids = pc.list_flatten(table["grids"]).unique().to_pylist()  # after which a report names its files
    if table["grids"].null_count or not all(name and Path(name).name == name for name in grids):
        return "column 'grids' holds other things than names"
    if unknown := set(pc.unique(table["status"]).to_pylist()) - {OK, ATTACK_FAILED, FAILED, NOT_RUN}:
        return f"column 'status' holds '{min(unknown)}'"
    done = table.filter(pc.invert(_without_values(table)))
    for name in ("value", "count"):
        if done[name].null_count:
            return f"column '{name}' has gaps"
    if not all(map(_is_settings, pc.unique(table["settings"]).to_pylist())):
        return "column 'settings' holds other things than a cell's"
    return None


def _is_settings(text: str) -> bool:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or not DEFAULTS.keys() <= values.keys() or not isinstance(values["metrics"], list):
        return False
    methods = [values[key] for key in ("data", "removal", "attack", "defense")] + values["metrics"]
    return all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in methods)


def _encoded(schema: pa.Schema) -> pa.Schema:
    """The schema with its strings dictionary-encoded, those in lists aside."""
    encoded = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(field.name, encoded if field.type == pa.string() else field.type) for field in schema])


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    strings = [field.name for field in schema if field.type == pa.string()]
    try:
        table = _completed(pq.read_table(path, read_dictionary=strings, page_checksum_verification=True))
        return table.select(schema.names).cast(_encoded(schema)).combine_chunks()
    except PermissionError:
        raise UserError(f"{path} may not be read; make it readable") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is damaged or of another version ({reason}); run its grid again to write it anew"
        ) from None


def _completed(table: pa.Table) -> pa.Table:
    """With the columns that the first results did not have."""
    if "grid" in table.column_names and "grids" not in table.column_names:
        table = table.append_column("grids", pa.array([[name] for name in table["grid"].to_pylist()]))
        for name in ("scale", "knows"):
            table = table.append_column(name, pa.array([""] * table.num_rows))
    if "error" in table.column_names:
        for name in ("failure", *(f"{stage}{each}" for stage in _STAGES for each in COMPUTED_WITH)):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    return table
