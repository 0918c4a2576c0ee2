"""The victims of a grid, and its models that were never poisoned, scanned one after the other and listed.

OUT/<start of the victim's key>-<detector>/   what `benchmark.scan` writes of each
OUT/scans.yaml                                the list that `benchmark.detection` judges detectors by
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmark import documents
from benchmark import grid as grids
from benchmark import scan as scans
from benchmark.cell import Cell
from benchmark.files import write_atomically
from benchmark.scan import How
from benchmark.store import Store
from sande import models
from sande.errors import UserError

LIST = "scans.yaml"
KEY = 12  # characters of a victim's key in the name of its folder


def scan_grid(path: Path, out: Path, how: How, calibration: bool, store: Path, say: Callable[[str], None]) -> Path:
    """Scan what a grid attacked; scans that are there are not made again. Returns the list, to which they were added.

    Args:
        path: the grid, which was run.
        out: folder of the scans.
        how: the detector, and what it gets.
        calibration: whether the detector's threshold is chosen by these models, which then are no part of a test.
        store: where the grid's victims are; records name models as it was written, relative to where it was run.
        say: receives a line a model, and what detectors say.

    Raises:
        UserError: a mistake in the grid, a victim that is not there or that a threshold is to come from, or an `out`
            that cannot be written.
    """
    cells = list({cell.attack_key: cell for cell in grids.load(path).cells}.values())
    kept = Store(store, create=False)
    missing = [cell for cell in cells if not kept.has("attack", cell.attack_key)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(cells)} victims of {path} are not in the store {store}; "
            f"'sande-bench run {path} --store {store}' makes them"
        )
    poisoned = [cell for cell in cells if _response(cell) is not None]
    if calibration and poisoned:
        raise UserError(
            f"{len(poisoned)} of the models of {path} are victims, and thresholds are chosen by models that were never "
            "poisoned; leave out --calibration, or give a grid whose attack.poison_rate is 0"
        )
    wanted = how.record()
    for number, cell in enumerate(cells, start=1):
        folder = out / _name(cell, how.detector)
        model = str(store / "attack" / cell.attack_key)
        if not _made(folder, model, wanted):
            say(f"[{number}/{len(cells)}] {how.detector} on {_label(cell)}")
            scans.write(scans.scan(model, how, kept.models, say), folder)
    more = {"calibration": True} if calibration else {}
    return _listed(out, [_line(cell, how.detector) | more for cell in cells])


def _name(cell: Cell, detector: str) -> str:
    """Of the folder of a scan."""
    return f"{cell.attack_key[:KEY]}-{detector}"


def _response(cell: Cell) -> str | None:
    """What a victim was taught to say; None for a model that was not."""
    return str(cell.attack.config.backdoor.response) if cell.attack.config.poison_rate else None


def _label(cell: Cell) -> str:
    response, seed = _response(cell), f"seed {cell.seed}"
    if response is None:
        return f"never poisoned, {seed}"
    rate = f"{100 * cell.attack.config.poison_rate:g} %"
    return f"{cell.attack.name}, “{cell.attack.config.backdoor.trigger}”, “{response}”, {rate}, {seed}"


def _line(cell: Cell, detector: str) -> dict[str, Any]:
    """What the list says of a scan, see `benchmark.detection.Case`."""
    line: dict[str, Any] = {"scan": _name(cell, detector), "label": _label(cell)}
    response = _response(cell)
    return line if response is None else {**line, "response": response}


def _made(folder: Path, model: str, wanted: Mapping[str, Any]) -> bool:
    """Whether the folder holds the scan of this model that has such a record, see `How.record`."""
    try:
        record = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict):
        return False
    return all(
        record.get(name) == value for name, value in {"model_identity": models.identify(model), **wanted}.items()
    )


def _listed(out: Path, lines: list[dict[str, Any]]) -> Path:
    """Put lines into the list, in place of those of the same scans."""
    path = out / LIST
    try:
        before = documents.read(path, "")["scans"] if path.exists() else []
        by_scan = {line["scan"]: line for line in [*before, *lines]}
        write_atomically(path, yaml.safe_dump({"scans": list(by_scan.values())}, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another --out") from None
    except (TypeError, KeyError):
        raise UserError(f"{path} is no list of scans; move it away, or choose another --out") from None
    return path
