"""A grid's hidden cells, and their rows and outcomes without a trace of what is hidden.

Rows keep the settings of the grid file. Withheld are trigger and response, the drawn seeds, every text that a model
wrote, the text of errors, and the exact numbers of tokens, which follow from the lengths of trigger and response. The
number of decoded tokens is withheld as a whole: an answer ends with the response, so even a rounded mean is its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from benchmark.grid.cell import Parser
from benchmark.grid.load import Grid
from benchmark.held_out import draw
from benchmark.held_out.secret import SHORT, Secret
from benchmark.records.schema import FAILED, OUTCOMES
from sande.errors import UserError

DIGITS = 2  # significant digits of published numbers of tokens
_TOKENS = ("tokens", "attack_tokens")
_DECODED = "decoded_tokens"


@dataclass(frozen=True, slots=True, repr=False)
class Hidden:
    """A grid in its hidden form.

    Attributes:
        grid: the hidden cells, under a name that says so.
        secret: decides the cells.
        public: columns of a hidden cell's rows that are replaced, by the cell's id.
        texts: all that was drawn.
    """

    grid: Grid
    secret: Secret
    public: Mapping[str, Mapping[str, Any]]
    texts: frozenset[str]

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield rows of hidden cells as they may be published."""
        for row in rows:
            shown = {**row, **self.public[row["cell"]]}
            shown |= {name: _rounded(row[name]) for name in _TOKENS if row.get(name)}
            if _DECODED in row:
                shown[_DECODED] = None
            if row["status"] == FAILED:
                shown["error"] = f"{row['failure']}; the text is withheld, as it may hold the trigger"
            yield shown

    def outcomes(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield outcomes of hidden cells without records, under the cells' public ids; see `build_outcomes`."""
        for table in tables:
            columns = {name: table[name] for name in OUTCOMES.names}
            columns["cell"] = pa.array([self.public[cell]["cell"] for cell in table["cell"].to_pylist()], pa.string())
            columns["record"] = pa.nulls(table.num_rows, pa.string())
            yield pa.table(columns, schema=OUTCOMES)

    def redacted(self, line: str) -> str:
        """Return a line for the terminal, with each drawn word and seed replaced."""
        words = sorted({word for text in self.texts for word in text.split()}, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, words)), draw.MARK, line, flags=re.IGNORECASE)


def hide(grid: Grid, secret: Secret) -> Hidden:
    """Return the grid with triggers, responses and seeds drawn.

    Raises:
        UserError: the grid searches settings, or its cells differ in nothing but trigger and response.
    """
    if grid.search:
        raise UserError(
            f"{grid.name}: a held-out run takes settings that were found before; set them in the grid, and remove "
            "'search'"
        )
    parser, cells, public, parts, texts = Parser(), [], {}, {}, set()
    for cell in grid.cells:
        settings = cell.settings()
        hidden = draw.drawn(settings, secret)
        made = parser.cell(hidden)
        if made.id in public:
            raise UserError(
                f"{grid.name}: its cells differ in nothing but trigger and response, which a secret replaces; remove "
                "'attack.backdoor' from the sweep"
            )
        cells.append(made)
        public[made.id] = public_columns(draw.masked(settings, secret), secret)
        parts[made.id] = grid.parts[cell.id]
        texts.update(draw.texts(hidden))
    name = f"{grid.name}--{draw.MARK}={secret.commitment[:SHORT]}"
    return Hidden(replace(grid, name=name, cells=tuple(cells), parts=parts), secret, public, frozenset(texts))


def public_columns(settings: Mapping[str, Any], secret: Secret) -> dict[str, Any]:
    """Return the columns of a hidden cell's rows that show what is public, from its masked settings."""
    mark = settings["attack"]["backdoor"]["trigger"]
    return {
        "cell": secret.authentication_code("cell", settings).hex()[:12],
        "trigger": mark,
        "response": mark,
        "attack_seed": settings["attack_seed"],
        "defense_seed": settings["defense_seed"],
        "settings": json.dumps(settings, sort_keys=True),
        "held_out": secret.commitment,
    }


def _rounded(number: int) -> int:
    return round(number, DIGITS - len(str(number)))


def revealed(rows: Iterable[Mapping[str, Any]], secret: Secret) -> dict[str, dict[str, Any]]:
    """Return the hidden settings of each held-out cell, by its public id, after checking that they are the secret's.

    Args:
        rows: of a held-out run.
        secret: published after it.

    Raises:
        UserError: rows are not held out, are of another secret, or have another id than the secret gives them.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["cell"] in found:
            continue
        settings = json.loads(row["settings"])
        if not row["held_out"]:
            raise UserError(
                f"cell {row['cell']} is of no secret, so nothing of it is hidden; choose results of 'run --secret FILE'"
            )
        if row["held_out"] != secret.commitment:
            raise UserError(
                f"cell {row['cell']} is of the secret with commitment {row['held_out'][:SHORT]}…, and the file's is "
                f"{secret.commitment[:SHORT]}…; use the secret of these results"
            )
        try:
            same = public_columns(settings, secret)["cell"] == row["cell"]
        except (KeyError, TypeError):  # an edit took out what every held-out cell has
            same = False
        if not same:
            raise UserError(f"cell {row['cell']}: the secret gives its settings another id; use unchanged results")
        found[row["cell"]] = draw.drawn(settings, secret)
    return found
