"""Read the shipped timings: seconds of stages on two cores of a CPU, for each type in which models compute.

They let a plan forecast a grid on a machine on which nothing has run yet. `timings.json` holds them.
`python -m benchmark.perf.timings` makes it from real runs; run it again when `benchmark.forecast.cost`
counts work differently.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sande.compute import ComputeType

FILE = Path(__file__).with_name("timings.json")
CORES = 2  # of the machines on which the shipped timings were taken


@dataclass(frozen=True, slots=True)
class Sample:
    """Timed work.

    Attributes:
        kind: kind of its stage.
        method: attack, defense, or names of the metric's measurements.
        model: name of the model.
        data: name of the data set whose rows are read.
        work: GPU-seconds for each billion parameters, see `benchmark.forecast.cost.Piece`.
        seconds: measured time.
        threads: threads of the process on a CPU; 0 on a GPU.
        workers: processes that shared the work.
    """

    kind: str
    method: str
    model: str
    data: str
    work: float
    seconds: float
    threads: int
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time of a run apart from the stages' own seconds.

    Attributes:
        around: seconds before Ray starts and after it has ended: plan, rows and report.
        start: seconds from the start of Ray to the end of the first stage, less its own: Ray, a process, its imports.
        stage: seconds of a later stage, less its own: loading and saving a model, Tune.
    """

    around: float
    start: float
    stage: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of one compute type: samples, and the overhead of their runs."""

    samples: tuple[Sample, ...]
    overhead: Overhead


@functools.cache
def shipped(compute_type: ComputeType) -> Timings:
    """Return the timings that the package has for this type on a CPU.

    Work timed only in the other type counts with those seconds times the median ratio of the work timed in both.
    """
    sections = json.loads(FILE.read_text(encoding="utf-8"))
    timed = {name: [Sample(**each) for each in section["samples"]] for name, section in sections.items()}
    own = timed.pop(compute_type)
    other = [sample for samples in timed.values() for sample in samples]
    return Timings((*own, *_scaled(other, own)), Overhead(**sections[compute_type]["overhead"]))


def _scaled(other: Iterable[Sample], own: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples of the other type whose work was not timed in this one, with seconds scaled to this one."""
    rates = {work_of(sample): sample.seconds / sample.work for sample in own}
    common, lacking = [], []
    for sample in other:
        if (work := work_of(sample)) in rates:
            common.append(rates[work] * sample.work / sample.seconds)
        else:
            lacking.append(sample)
    for sample in lacking if common else ():
        yield replace(sample, seconds=sample.seconds * statistics.median(common))


def work_of(sample: Sample) -> tuple[str, str, str, str]:
    """Return the kind, method, model and data of a sample: all that tells work apart but its size."""
    return sample.kind, sample.method, sample.model, sample.data
