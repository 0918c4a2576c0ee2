"""Make one section of the shipped timings, `benchmark/forecast/timings.json`, from the stores of real runs.

python -m benchmark.perf.timings STORE [STORE …] --type bf16

It uses the stages that ran on a CPU in that type, or that record no type. Work that was timed several times counts
once, with the median of its seconds. The overhead is the mean of the stores' last runs. Every other section of the file
stays. Samples are in a fixed order, so the same stores make the same file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmark.forecast import measured
from benchmark.forecast.timings import FILE, Overhead, Sample
from benchmark.store.local import LocalStore
from sande.compute import ComputeType

DIGITS = 6  # of work, which is a sum of floats


def section(stores: Sequence[LocalStore], compute_type: ComputeType) -> dict[str, Any]:
    """Return the samples and the overhead of several stores as JSON values.

    Raises:
        SystemExit: no store has a stage on a CPU in this type, or none has the overhead of a run.
    """
    names = ", ".join(str(store.root) for store in stores)
    on_cpu = (sample for store in stores for sample in measured.on_cpu(store, compute_type))
    samples = [sample for sample in on_cpu if sample.workers == 1]
    if not samples:
        raise SystemExit(f"{names}: no stage ran on a CPU in {compute_type}; name a store with such stages")
    overheads = [found for store in stores if (found := measured.noted(store))]
    if not overheads:
        raise SystemExit(f"{names}: no overhead.json; name a store on which a run has ended")
    overhead = {
        field.name: round(statistics.fmean(getattr(each, field.name) for each in overheads), 3)
        for field in dataclasses.fields(Overhead)
    }
    return {"overhead": overhead, "samples": list(_merged(samples))}


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
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="folder of a store on this machine")
    parser.add_argument("--type", required=True, choices=get_args(ComputeType), help="type that the stages computed in")
    parser.add_argument("--out", type=Path, default=FILE, help="file to write; by default, the one in the package")
    given = parser.parse_args()
    sections = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    sections[given.type] = section([LocalStore(path, create=False) for path in given.stores], given.type)
    given.out.write_text(text(sections), encoding="utf-8")
    print(f"{given.out}: {len(sections[given.type]['samples'])} samples of {given.type}")


if __name__ == "__main__":
    main()
