"""Which code and libraries made the rows, by stage, and where they differ.

The store keeps a stage as long as its key is the same, so the rows of one grid can have victims of an earlier commit
than their evaluations. Libraries that change numbers are in the key (`benchmark.grid.keys`); others may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.grid.cell import NO_DEFENSE
from benchmark.records.schema import FAILED, NOT_RUN, STAGES

UNKNOWN = "unknown"
NAMES = dict(zip(STAGES, ("attacks", "defenses", "evaluations"), strict=True))


def by_stage(table: pa.Table, column: str) -> dict[str, list[str]]:
    """Return the values of a column for each kind of stage, sorted; `UNKNOWN` where a row lacks one.

    Args:
        table: rows of a results folder.
        column: a key of `benchmark.records.schema.PROVENANCE`.

    Returns:
        Values by "attacks", "defenses" and "evaluations"; no key for a stage that no measured row has.
    """
    without = pc.or_(pc.equal(table["status"], FAILED), pc.equal(table["status"], NOT_RUN))
    # Only the columns that are read: a million rows of all columns take gigabytes.
    needed = ["defense", *(f"{prefix}{column}" for prefix in NAMES)]
    measured = table.select(needed).filter(pc.invert(without))
    found = {}
    for prefix, name in NAMES.items():
        rows = measured.filter(pc.not_equal(measured["defense"], NO_DEFENSE)) if prefix == "defense_" else measured
        values = pc.unique(rows[f"{prefix}{column}"]).to_pylist()
        if values:
            found[name] = sorted(str(UNKNOWN if value is None else value) for value in values)
    return found


def device_name(device: str) -> str:
    """Return the name of a device for people: rows have "(1 threads)" of a processor with one."""
    return device.replace("(1 threads)", "(1 thread)")


def mixtures(table: pa.Table, from_one_store: bool = False) -> list[str]:
    """Return a sentence for code, and one for libraries, that differ between stages; none where nothing does.

    Stages that recorded nothing, as those of earlier versions, are left out.

    Args:
        table: rows of a results folder, or of several.
        from_one_store: whether one command made all rows. Its store then kept stages of earlier versions; parts that
            were joined, and folders of one board, may have had a store each.
    """
    why = (
        "The store kept those whose own code and settings did not change."
        if from_one_store
        else "Each row names the version that made each of its stages."
    )
    sentences = []
    if code := _differing(by_stage(table, "code_version")):
        sentences.append(f"Stages are of several versions of the code: {code}. {why}")
    libraries = {name: _libraries(texts) for name, texts in by_stage(table, "versions").items()}
    differing = []
    for library in sorted({library for versions in libraries.values() for library in versions}):
        of_stages = {name: versions[library] for name, versions in libraries.items() if library in versions}
        if text := _differing(of_stages):
            differing.append(f"{library} ({text})")
    if differing:
        sentences.append(f"Stages used several versions of libraries: {'; '.join(differing)}.")
    return sentences


def _differing(of_stages: Mapping[str, Iterable[str]]) -> str:
    """Return the values of each stage in words, if there are several; else an empty text."""
    known = {name: [value for value in values if value != UNKNOWN] for name, values in of_stages.items()}
    if len({value for values in known.values() for value in values}) < 2:
        return ""
    return "; ".join(f"{name} {', '.join(values)}" for name, values in known.items() if values)


def _libraries(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the versions of each library, from texts as `torch 2.13.0, trl 1.10.0`."""
    found: dict[str, set[str]] = {}
    for text in texts:
        for part in text.split(", "):
            library, _, version = part.partition(" ")
            if version:
                found.setdefault(library, set()).add(version)
    return {library: sorted(versions) for library, versions in found.items()}
