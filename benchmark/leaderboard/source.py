"""Sources of a board: folders of results, and submitted entries beside the victims of these results."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmark.grid.keys import canonical_json
from benchmark.leaderboard import submission, verdict, victims
from benchmark.records import checks, files
from sande.models.catalog import TINY


@dataclass(frozen=True, slots=True)
class Source:
    """The contents of one folder of results, or of one submitted entry.

    Attributes:
        rows: all result rows.
        samples: published outcomes.
        about: facts about a submitted method, by name.
        is_entry: whether it is a submitted entry.
        unverified: of an entry, the cells that get no rank: their victim is not among the board's own, or a second run
            contradicts the entry.
        outcomes: of the cells of results, without records; None for an entry.
        is_verified: of an entry, whether a second run found that its numbers hold, see `verdict`.
    """

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    about: Mapping[str, str]
    is_entry: bool = False
    unverified: frozenset[str] = frozenset()
    outcomes: pa.Table | None = None
    is_verified: bool = False

    @property
    def is_random(self) -> bool:
        """True if some rows are of the random model."""
        return any(row["model"] == TINY for row in self.rows)

    def of(self, cells: Collection[str]) -> Source:
        """Return the source with the rows, samples and outcomes of these cells alone."""
        outcomes = self.outcomes
        if outcomes is not None:
            outcomes = outcomes.filter(pc.is_in(outcomes["cell"], pa.array(sorted(cells), pa.string())))
        return replace(
            self,
            rows=[row for row in self.rows if row["cell"] in cells],
            samples=[sample for sample in self.samples if sample["cell"] in cells],
            unverified=self.unverified & frozenset(cells),
            outcomes=outcomes,
        )


def read_all(paths: Sequence[Path]) -> list[Source]:
    """Return the sources of a board, each entry with the victims' values from the board's results.

    A cell that the results have counts from them alone. An entry whose method has the name of another one on the board
    is shown with the name of its file, so that nobody changes the numbers of another method. Where that name is taken,
    too, a number follows.

    Raises:
        UserError: as `read`.
    """
    sources = [read(path) for path in paths]
    own = [row for source in sources if not source.is_entry for row in source.rows]
    # By settings, as the ids of older results were made in another way.
    known, cells, taken = victims.known(own), set(map(_settings, own)), {row["defense"] for row in own}
    made = []
    for path, source in zip(paths, sources, strict=True):
        if source.is_entry:
            rows, unmatched = victims.placed([row for row in source.rows if _settings(row) not in cells], known)
            source = replace(source, rows=_named(rows, taken, path), unverified=source.unverified | unmatched)
            source = source.of({row["cell"] for row in rows})
            taken |= {row["defense"] for row in source.rows}
        made.append(source)
    return made


def owned(sources: Sequence[Source]) -> list[Source]:
    """Return the sources with each cell in one of them alone: results before entries, then the first.

    The rows, the outcomes and the samples of a cell are thus of one source, and no other one adds to them.
    """
    found, seen = [], set[str]()
    for source in sorted(sources, key=lambda source: source.is_entry):
        own = {row["cell"] for row in source.rows} - seen
        seen |= own
        found.append(source.of(own))
    return found


def _settings(row: Mapping[str, Any]) -> str:
    return _canonical(row["settings"])


@functools.lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    return canonical_json(json.loads(text))


def _named(rows: Sequence[dict[str, Any]], taken: set[str], path: Path) -> list[dict[str, Any]]:
    """Return the rows of an entry, with another name for its method where the name is taken."""
    return [row | {"defense": _free(row["defense"], taken, path.name)} for row in rows]


def _free(name: str, taken: Collection[str], file: str) -> str:
    """Return the name of a method, with that of its file where it is taken, and a number where that is taken, too."""
    numbered = (f"{name} ({file}, {number})" for number in itertools.count(2))
    return next(one for one in itertools.chain((name, f"{name} ({file})"), numbered) if one not in taken)


def read(path: Path) -> Source:
    """Return the results of a grid, or a submitted entry.

    Raises:
        UserError: a folder has no readable rows, or an entry has problems.
    """
    if path.is_file() or (path.suffix in (".json", ".parquet") and not path.exists()):
        return _entry(path)
    rows, outcomes = files.read_results(path)
    published = outcomes.filter(pc.is_valid(outcomes["record"])).to_pylist()
    return Source(checks.listed(rows, path), published, {}, outcomes=outcomes.drop_columns(["record"]))


def _entry(path: Path) -> Source:
    entry, found = submission.read(path), verdict.read(path)
    state = found.summary if found else "not run here"
    facts = {"Method": entry.method.about, "Link": entry.method.link, "Submitted": f"as {path.name}; {state}"}
    rows = submission.to_rows(entry)
    contradicted = found is not None and not found.holds
    return Source(
        rows,
        submission.samples(entry),
        {key: value for key, value in facts.items() if value},
        is_entry=True,
        unverified=frozenset(row["cell"] for row in rows) if contradicted else frozenset(),
        is_verified=found is not None and found.holds,
    )
