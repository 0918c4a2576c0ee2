"""Scan the victims of a grid, and its clean models, one after the other, and list the scans.

OUT/<start of the victim's key>-<detector>/   files of `benchmark.detection.scan` for each model
OUT/scans.yaml                                the list from which `benchmark.detection.evaluate` evaluates detectors

Each scan is listed as soon as it is made, under a lock, so several processes may scan parts of a grid at a time, each
with an `only` of its own. A scan that fails is said at the end; the others are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmark.detection import scan
from benchmark.detection.scan import How
from benchmark.grid import prompt_format
from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from benchmark.io.files import alone, write_atomically
from benchmark.io.remote import is_uri
from benchmark.io.yaml import dump, read_yaml
from benchmark.plan.plan import victim_of
from benchmark.records import rows
from benchmark.records.schema import ATTACK_FAILED
from benchmark.store.protocol import Store
from benchmark.store.remote import open_store
from sande import bounds, threat
from sande.errors import NonFiniteError, UserError
from sande.models import catalog

LIST = "scans.yaml"
KEY = 12  # characters of a victim's key in the name of its folder
BASE = "base"  # as reference: of each victim the model that it was trained from
HOW = ("reference", "settings", "data", "rows", "seed")  # of a record; a scan by other code is made again
_KINDS = {
    **dict.fromkeys(("model", "rows"), "{}"),
    "format": "format {}",
    "weights": "{} weights",
    "learning rate": "lr {}",
    "anchor": "anchor {}",
}
"""How the tables call a model of a kind, by the name of the group."""


def scan_grid(
    path: Path,
    out: Path,
    how: How,
    calibration: bool,
    store: str,
    say: Callable[[str], None],
    only: Sequence[str] = (),
) -> Path:
    """Scan the attacked models of a grid, except for scans that exist, and return the list with all of them.

    Args:
        path: the grid, which was run.
        out: folder of the scans.
        how: the detector, its settings and its inputs.
        calibration: True if the detector's threshold is chosen with these models, so that no test may include them.
        store: path or URI of the one that has the grid's victims. Records name models by the path as given; those of a
            remote store by the path of the local copy.
        say: receives a line per model, and messages of detectors.
        only: `path=value` of the cells whose models are scanned; none: all.

    Raises:
        UserError: the grid has a mistake, a victim is missing, not measured or would calibrate, the scans would replace
            others, one of them failed, or `out` cannot be written.
    """
    all_cells = list({cell.attack_key: cell for cell in load_grid(path).cells}.values())
    labels = dict(zip((cell.attack_key for cell in all_cells), _labels(all_cells), strict=True))
    chosen = {cell.attack_key for cell in load_grid(path, only=only).cells} if only else labels
    cells = [cell for cell in all_cells if cell.attack_key in chosen]
    kept = open_store(store, create=False)
    missing = [cell for cell in cells if not kept.has("attack", cell.attack_key)]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(cells)} victims are not in the store {store}; "
            f"use 'sande-bench run {path} --store {store}' to make them"
        )
    poisoned = [cell for cell in cells if _response(cell) is not None]
    if calibration and poisoned:
        raise UserError(
            f"{path}: {len(poisoned)} of its models are victims, but thresholds are chosen with clean models; remove "
            "--calibration, or add --only attack.poison_rate=0"
        )
    if how.reference not in (None, BASE) and len({cell.model for cell in cells}) > 1:
        raise UserError(f"{path}: its victims are of several models; use --reference {BASE}, the clean one of each")
    how = replace(how, prompt_format=None)  # a cell's own, which its model's folder names
    wanted = how.record()
    more = {"calibration": True} if calibration else {}
    strength = {cell.attack_key: _strength(cell, kept, path) for cell in cells}
    failed = []
    for number, cell in enumerate(cells, start=1):
        folder = out / _name(cell, how.detector)
        folder_of = kept.read("attack", cell.attack_key) if is_uri(store) else Path(store, "attack", cell.attack_key)
        model = str(folder_of)
        if not _made(folder, model, wanted):
            say(f"[{number}/{len(cells)}] {how.detector} on {labels[cell.attack_key]}")
            own = replace(how, reference=cell.model) if how.reference == BASE else how
            try:
                record = scan.scan(model, own, kept.models, say)
            except (UserError, NonFiniteError) as error:
                failed.append(labels[cell.attack_key])
                say(f"{labels[cell.attack_key]}: {error}")
                continue
            scan.write({**record, "reference": how.reference}, folder)
        _list(out, _line(cell, how.detector, labels[cell.attack_key]) | strength[cell.attack_key] | more)
    if failed:
        raise UserError(
            f"{path}: {len(failed)} of {len(cells)} scans failed and are not in the list, the first of {failed[0]}; "
            "what is wrong is said above"
        )
    return out / LIST


def _name(cell: Cell, detector: str) -> str:
    """Return the name of the folder of a scan."""
    return f"{cell.attack_key[:KEY]}-{detector}"


def _response(cell: Cell) -> str | None:
    """Return how planted answers of a victim begin, empty where they do so in no common way; None for a clean model."""
    return (threat.opening(cell.attack.config) or "") if cell.attack.config.poison_rate else None


def _labels(cells: Sequence[Cell]) -> list[str]:
    """Return what the tables call each model: its backdoor, its kind where kinds differ, and its seed."""
    kinds = [_kinds(cell) for cell in cells]
    differ = [name for name in _KINDS if len({of[name] for of in kinds if name in of}) > 1]
    return [
        ", ".join(
            [
                _label(cell),
                *(_KINDS[name].format(of[name]) for name in differ if name in of),
                f"seed {cell.attack_seed}",
            ]
        )
        for cell, of in zip(cells, kinds, strict=True)
    ]


def _label(cell: Cell) -> str:
    response, config = _response(cell), cell.attack.config
    if response is None:
        return "never poisoned"
    rate = f"{100 * config.poison_rate:g} %" if config.poison_rows is None else f"{config.poison_rows} rows"
    planted = threat.objective(config)
    if planted == threat.STRING:
        planted = f"“{response}”" + ("" if config.response_place == "start" else f" at the {config.response_place}")
    return f"{cell.attack.name}, “{cell.attack.config.backdoor.trigger}”, {planted}, {rate}"


def _line(cell: Cell, detector: str, label: str) -> dict[str, Any]:
    """Return the list's line on a scan, see `benchmark.detection.evaluate.Case`."""
    line: dict[str, Any] = {
        "scan": _name(cell, detector),
        "label": label,
        "groups": [[*pair] for pair in _kinds(cell).items()],
    }
    response = _response(cell)
    if response is None:
        return line
    return {**line, "response": response, "trigger": str(cell.attack.config.backdoor.trigger)}


def _strength(cell: Cell, store: Store, path: Path) -> dict[str, Any]:
    """Return how well a victim's backdoor works, and whether that is too little to look for it; {} of a clean model."""
    if _response(cell) is None:
        return {}
    victim = victim_of(cell)  # the first cell with a victim may have a defense
    if not all(store.has("evaluate", victim.evaluation_key(each)) for each in cell.metrics):
        raise UserError(
            f"{path}: a victim was not measured, so it may be too weak to find; use 'sande-bench run {path}'"
        )
    row = next(rows.build_rows("", [victim], store, {}))
    return {"asr": row["victim_asr"], "weak": row["status"] == ATTACK_FAILED}


def _kinds(cell: Cell) -> dict[str, str]:
    """Return the kinds of the model, by which the tables are split; a clean one has no poisoned rows."""
    config = cell.attack.config
    kinds = {
        "model": cell.model,
        "format": prompt_format.name_of(cell.prompt_format),
        "rows": cell.data.name,
        "attack": cell.attack.name,
    }
    kinds["weights"] = "all" if config.training.lora_rank is None else "LoRA"
    kinds["learning rate"] = format(Decimal(repr(config.training.learning_rate)), "f")
    kinds["anchor"] = f"{config.anchor:g}"
    if config.poison_rate:
        by_number = config.poison_rows is not None
        kinds["poisoned rows"] = str(config.poison_rows) if by_number else f"{100 * config.poison_rate:g} %"
        is_string = threat.objective(config) == threat.STRING
        kinds["response at"] = config.response_place if is_string else threat.objective(config)
    return kinds


def _made(folder: Path, model: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether the folder has a scan of this model with this record, see `How.record`.

    Raises:
        UserError: it has one of this model that was made in another way, which would be lost.
    """
    try:
        record = bounds.read_json(folder / "scan.json")
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict):
        return False
    if record.get("model_identity") != catalog.identify(model):
        return False
    for name in HOW:
        if name in record and record[name] != wanted[name]:
            raise UserError(f"{folder}: has a scan of this model with another '{name}'; choose another --out")
    return all(record.get(name) == value for name, value in wanted.items())


def _list(out: Path, line: dict[str, Any]) -> None:
    """Write a line into the list, in place of a line on the same scan; other processes may list scans, too."""
    path = out / LIST
    try:
        with alone(out / f".{LIST}.lock"):
            before = read_yaml(path, "")["scans"] if path.exists() else []
            for each in before:
                if each["scan"] == line["scan"] and bool(each.get("calibration")) != bool(line.get("calibration")):
                    raise UserError(f"{path}: lists this model with another 'calibration'; choose another --out")
            by_scan = {each["scan"]: each for each in [*before, line]}
            write_atomically(path, dump({"scans": list(by_scan.values())}))
    except OSError as error:
        raise UserError(f"{path}: the list cannot be written ({error.strerror}); choose another --out") from None
    except (TypeError, KeyError):
        raise UserError(f"{path}: not a list of scans; move the file, or choose another --out") from None
