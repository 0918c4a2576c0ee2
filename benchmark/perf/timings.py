"""Make one section of the shipped timings, `benchmark/forecast/timings.json`, from stores and published rows.

python -m benchmark.perf.timings FOLDER [FOLDER …] --type bf16

Each folder is a store or has the rows of a grid. Stages count that ran on a CPU in that type, and those of a store that
record no type. Name runs beside which nothing else ran. Work that was timed several times counts once, with the median
of its seconds. The overhead is the mean of the stores' last runs. What no folder has stays in the file: other work, the
overhead, every other section. Samples are in a fixed order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from benchmark.forecast import cost, measured
from benchmark.forecast.timings import FILE, Overhead, Sample, work_of
from benchmark.grid.cell import NO_DEFENSE, Cell
from benchmark.grid.resources import Kind
from benchmark.plan.stage import Stage
from benchmark.records.files import read_rows
from benchmark.records.folder import ROWS
from benchmark.records.schema import STAGES
from benchmark.store.local import LocalStore
from sande import registry
from sande.compute import ComputeType
from sande.errors import UserError

DIGITS = 6  # of work, which is a sum of floats
_RECORDED = ("device", "compute_type", "workers")  # of each stage, by a row
_SECONDS = ("attack_seconds", "seconds", "metric_seconds")


def section(folders: Sequence[Path], compute_type: ComputeType, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the samples of several folders, and the overhead of a run, as JSON values.

    Args:
        folders: stores, and folders with the rows of a grid.
        compute_type: type that the stages computed in.
        known: section before; what no folder has stays. It may be empty.

    Raises:
        SystemExit: no folder has a stage on a CPU in this type, or there is no overhead.
    """
    names = ", ".join(map(str, folders))
    stores = [LocalStore(folder, create=False) for folder in folders if not (folder / ROWS).exists()]
    sources = [measured.on_cpu(store, compute_type) for store in stores]
    sources += [_published(folder, compute_type) for folder in folders if (folder / ROWS).exists()]
    samples = [sample for source in sources for sample in source if sample.workers == 1]
    if not samples:
        raise SystemExit(f"{names}: no stage ran on a CPU in {compute_type}; name a folder with such stages")
    overhead = known.get("overhead")
    if found := [each for store in stores if (each := measured.noted(store))]:
        overhead = {
            field.name: round(statistics.fmean(getattr(each, field.name) for each in found), 3)
            for field in dataclasses.fields(Overhead)
        }
    if not overhead:
        raise SystemExit(f"{names}: no overhead.json; name a store on which a run has ended")
    timed = set(map(work_of, samples))
    others = [
        sample for sample in (Sample(**each) for each in known.get("samples", ())) if work_of(sample) not in timed
    ]
    return {"overhead": overhead, "samples": list(_merged([*samples, *others]))}


def _published(folder: Path, compute_type: ComputeType) -> Iterator[Sample]:
    """Yield samples of the rows of a grid; those that cells share, once."""
    columns = ["model", "metric", "settings", *(f"{stage}{name}" for stage in STAGES for name in _RECORDED), *_SECONDS]
    cells: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in read_rows(folder).select(columns).to_pylist():
        cells[row["settings"]].append(row)
    found: dict[Sample, None] = {}
    for settings, rows in cells.items():
        with suppress(UserError):  # settings of an earlier version
            on_cpu = (
                {"settings": json.loads(settings), **manifest}
                for manifest in _manifests(Cell.parse(json.loads(settings)), rows)
                if measured.is_on(str(manifest["device"]), measured.CPU) and manifest["compute_type"] == compute_type
            )
            found |= dict.fromkeys(measured.samples_of(on_cpu))
    yield from found


def _manifests(cell: Cell, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what the manifests of a cell say of time.

    Rows have the time of a defense together with that of its parts, which counts here in proportion to their work.
    """

    def recorded(row: Mapping[str, Any], stage: str) -> dict[str, Any]:
        return {name: row[f"{stage}{name}"] for name in _RECORDED} | {"workers": row[f"{stage}workers"] or 1}

    first = next((row for row in rows if row["attack_seconds"]), None)
    if not first:
        return
    yield {"kind": "attack", "seconds": first["attack_seconds"], **recorded(first, "attack_")}
    if cell.defense.name != NO_DEFENSE and first["seconds"]:
        parts = len(registry.parts(cell.defense.name, cell.defense.config))
        number: dict[Kind, int] = {"defend": 1, **({"part": parts} if parts else {})}
        work = {kind: cost.pieces(Stage.of(cell, kind, ""), cell)[0].work for kind in number}
        whole = sum(number[kind] * work[kind] for kind in number)
        for kind in number if whole else ():
            seconds = first["seconds"] * work[kind] / whole
            yield {"kind": kind, "seconds": seconds, **recorded(first, "defense_")}
    by_name = {row["metric"]: row for row in rows}
    for metric in cell.metrics:
        names = cost.measured(metric)
        if (row := by_name.get(names[0])) and row["metric_seconds"]:
            measurements = [{"name": name} for name in names]
            yield {
                "kind": "evaluate",
                "seconds": row["metric_seconds"],
                "measurements": measurements,
                **recorded(row, ""),
            }


def _merged(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    taken: dict[Sample, list[float]] = defaultdict(list)
    for sample in samples:
        work = float(f"{sample.work:.{DIGITS}g}")
        taken[dataclasses.replace(sample, work=work, seconds=0.0)].append(sample.seconds)
    for sample in sorted(taken, key=dataclasses.astuple):
        values = dataclasses.asdict(sample) | {"seconds": round(statistics.median(taken[sample]), 3)}
        yield {name: value for name, value in values.items() if name != "workers"}


def text(sections: dict[str, Any]) -> str:
    """Return the file's text: JSON with a line for each sample."""
    blocks = []
    for name, values in sorted(sections.items()):
        lines = ",\n".join(f"      {json.dumps(sample)}" for sample in values["samples"])
        overhead = json.dumps(values["overhead"])
        blocks.append(f'  "{name}": {{\n    "overhead": {overhead},\n    "samples": [\n{lines}\n    ]\n  }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> None:
    """Replace the section of one type, and print the number of its samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a store, or the rows of a grid")
    parser.add_argument("--type", required=True, choices=get_args(ComputeType), help="type that the stages computed in")
    parser.add_argument("--out", type=Path, default=FILE, help="file to write; by default, the one in the package")
    given = parser.parse_args()
    sections = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    sections[given.type] = section(given.folders, given.type, sections.get(given.type, {}))
    given.out.write_text(text(sections), encoding="utf-8")
    print(f"{given.out}: {len(sections[given.type]['samples'])} samples of {given.type}")


if __name__ == "__main__":
    main()
