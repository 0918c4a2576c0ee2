"""Sentences on what the numbers of a board mix: code, libraries, compute types, and settings of one defense."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from benchmark.grid.cell import NO_DEFENSE
from benchmark.grid.labels import flatten, varying, written
from benchmark.io.units import joined
from benchmark.leaderboard.board import Cells, Run
from benchmark.records import schema
from benchmark.records.provenance import NAMES, mixtures

Settings = Mapping[str, Any]  # of a defense, by path


def sentences(cells: Cells, runs: Iterable[Run]) -> list[str]:
    """Return the sentences; none where nothing differs.

    Args:
        cells: result rows by cell and metric.
        runs: the board's, of these cells.
    """
    return [*mixtures(_provenance(cells)), *_compute_types(cells), *_settings(cells, runs)]


def _provenance(cells: Cells) -> pa.Table:
    """Return the distinct values of the rows' columns that `mixtures` reads."""
    stages = [f"{stage}{name}" for stage in schema.STAGES for name in ("code_version", "versions")]
    names = ["status", "defense", *stages]
    found = {tuple(row[name] for name in names) for rows in cells.values() for row in rows.values()}
    rows = [dict(zip(names, values, strict=True)) for values in found]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names]))


def _compute_types(cells: Cells) -> Iterator[str]:
    """Yield a sentence if the stages of measured rows have several compute types, by attack seed where seeds differ."""
    of_seeds: dict[int, dict[str, set[str]]] = {}
    for row in (row for rows in cells.values() for row in rows.values()):
        if row["status"] in (schema.FAILED, schema.NOT_RUN):
            continue
        for stage, name in NAMES.items():
            kind = row[f"{stage}compute_type"]
            if kind and not (name == "defenses" and row["defense"] == NO_DEFENSE):
                of_seeds.setdefault(row["attack_seed"], {}).setdefault(name, set()).add(kind)
    if len({kind for stages in of_seeds.values() for kinds in stages.values() for kind in kinds}) < 2:
        return
    seeds_of: dict[str, list[int]] = {}
    for seed, stages in sorted(of_seeds.items()):
        parts = [f"{name} {' and '.join(sorted(stages[name]))}" for name in NAMES.values() if name in stages]
        seeds_of.setdefault(", ".join(parts), []).append(seed)
    if len(seeds_of) == 1:
        yield f"Stages used several compute types, which round differently: {', '.join(seeds_of)}."
        return
    named = "; ".join(f"on attack seed {_listed(seeds)} {text}" for text, seeds in seeds_of.items())
    yield f"Stages used several compute types, which round differently: {named}."


def _settings(cells: Cells, runs: Iterable[Run]) -> Iterator[str]:
    """Yield a sentence for each defense whose settings differ between attack seeds of one case.

    A setting that some rows lack counts, even if others have its default: that is no sign that older code did the same.
    """
    of_cases: dict[str, dict[str, list[tuple[int, Settings]]]] = {}
    for one in runs:
        if one.attempted and one.verified:
            own = json.loads(next(iter(cells[one.cell].values()))["settings"])["defense"]
            of_cases.setdefault(one.defense, {}).setdefault(one.case, []).append((one.attack_seed, dict(flatten(own))))
    for defense, cases in of_cases.items():
        if parts := _differing(cases.values()):
            yield (
                f"Settings of {defense} differ between attack seeds, and its numbers are over all of them: "
                f"{'; '.join(parts)}."
            )


def _differing(cases: Iterable[Sequence[tuple[int, Settings]]]) -> list[str]:
    """Return the settings that differ between attack seeds of a case, in words.

    Args:
        cases: attack seed and settings of each run of a defense, by case.
    """
    seeds_of: dict[str, dict[str, set[int]]] = {}  # by path and value
    partly: dict[tuple[int, ...], set[str]] = {}  # paths that some attack seeds lack, by those that have them
    common: set[str] = set()  # sections of which every run of a case has a part
    for runs in cases:
        for path in varying(values for _, values in runs):
            if all(path in values for _, values in runs):
                for seed, values in runs:
                    seeds_of.setdefault(path, {}).setdefault(written(values[path]), set()).add(seed)
        every = set[str]().union(*(values for _, values in runs))
        for path in every:
            having = {seed for seed, values in runs if path in values}
            if all(path in values for _, values in runs):
                common.add(_section(path))
            else:
                partly.setdefault(tuple(sorted(having)), set()).add(path)
    parts = [
        f"{path} is " + ", ".join(f"{value} on attack seed {_listed(seeds)}" for value, seeds in values.items())
        for path, values in sorted(seeds_of.items())
    ]
    for seeds, paths in partly.items():
        named = sorted({path if _section(path) in common else _section(path) for path in paths})
        parts.append(f"{' and '.join(named)}: set on attack seed {_listed(seeds)} alone")
    return parts


def _section(path: str) -> str:
    return path.partition(".")[0]


def _listed(seeds: Iterable[int]) -> str:
    return joined(list(map(str, sorted(seeds))))
