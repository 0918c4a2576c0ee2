"""Read the shipped timings: how long stages took on two cores of a CPU, for each type that models compute in.

With them a plan says how long a grid will take on a machine on which nothing has run yet. `timings.json` has them.
`python -m benchmark.perf.timings` makes it from the manifests of real runs; run it again when `benchmark.estimate`
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
CORES = 2  # of the machines that the shipped timings are from


@dataclass(frozen=True, slots=True)
class Sample:
    """Work that was timed.

    Attributes:
        kind: of its stage.
        method: attack, defense, or what the metric measures.
        model: whose work it was.
        data: set whose rows are read.
        work: GPU-seconds for each billion parameters, see `benchmark.estimate.Piece`.
        seconds: that it took.
        threads: of the process that did it on a CPU; 0 on a GPU.
    """

    kind: str
    method: str
    model: str
    data: str
    work: float
    seconds: float
    threads: int


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time that a run takes apart from its stages' own.

    Attributes:
        around: seconds before Ray is started and after it has ended: the plan, rows and report.
        start: seconds from there until the first stage has ended, less its own: Ray, and a process with its imports.
        stage: seconds of a later stage, less its own: loading and saving a model, Tune.
    """

    around: float
    start: float
    stage: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of one compute type: samples, and the overhead of the runs that they are from."""

    samples: tuple[Sample, ...]
    overhead: Overhead


@functools.cache
def shipped(compute_type: ComputeType) -> Timings:
    """Return the timings that the package has for this type on a CPU.

    Work timed in the other type alone takes as long as there, times the median ratio of the work timed in both.
    """
    sections = json.loads(FILE.read_text(encoding="utf-8"))
    timed = {name: [Sample(**each) for each in section["samples"]] for name, section in sections.items()}
    own = timed.pop(compute_type)
    other = [sample for samples in timed.values() for sample in samples]
    return Timings((*own, *_scaled(other, own)), Overhead(**sections[compute_type]["overhead"]))


def _scaled(other: Iterable[Sample], own: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples of another type whose work has none of its own, with seconds as of its own."""
    rates = {_work_of(sample): sample.seconds / sample.work for sample in own}
    common, lacking = [], []
    for sample in other:
        if (work := _work_of(sample)) in rates:
            common.append(rates[work] * sample.work / sample.seconds)
        else:
            lacking.append(sample)
    for sample in lacking if common else ():
        yield replace(sample, seconds=sample.seconds * statistics.median(common))


def _work_of(sample: Sample) -> tuple[str, str, str, str]:
    return sample.kind, sample.method, sample.model, sample.data
