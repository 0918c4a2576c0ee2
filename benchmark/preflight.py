"""What can be wrong with a grid's data is said before anything is trained, not after an hour."""

from __future__ import annotations

from collections.abc import Iterable

from benchmark.cell import Cell
from benchmark.logs import quiet
from benchmark.store import Store
from sande import registry, types
from sande.data import sources


def check(cells: Iterable[Cell], store: Store) -> None:
    """Read every data set, choose every row, and let each defense look at the rows it will get.

    Raises:
        UserError: a broken or unreachable data set, no rows left, or a defense's setting that fits none of its rows.
    """
    from sande import models

    quiet()
    seen: set[object] = set()
    for cell in cells:
        victim, removal = (cell.model, cell.data), (cell.model, cell.removal, cell.defense)
        if victim in seen and removal in seen:
            continue
        tokenizer = models.load_tokenizer(cell.model, store.models)
        if victim not in seen:
            sources.training_rows(cell.data, tokenizer)
            sources.held_out_rows(cell.data, tokenizer)
            for metric in cell.metrics:
                for name in registry.entry("metrics", metric.name).reads(metric.config):
                    sources.questions(name)
        if removal not in seen:
            data = types.CleanData(sources.removal_rows(cell.removal, tokenizer))
            look = getattr(registry.entry("defenses", cell.defense.name), "check", None)
            if look:
                look(tokenizer, data, cell.defense.config)
        seen |= {victim, removal}
