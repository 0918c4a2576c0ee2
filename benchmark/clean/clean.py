"""Measure a model, remove its backdoor as far as it is known, measure it again and report: `sande-bench clean`.

The result is one new folder, which is written atomically.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmark.clean import report
from benchmark.clean.probe import Probe
from benchmark.execution import provenance
from benchmark.grid.load import settings_of
from benchmark.io import logs
from benchmark.io.yaml import read_yaml
from sande import cleaning, compute
from sande.cleaning import Config, Known
from sande.config import as_dict, configure
from sande.data import datasets, splits
from sande.errors import UserError
from sande.statistics import mcnemar, paired_bootstrap, wilson
from sande.types import Run

LIBRARIES = ("torch", "transformers")
INCIDENT = ("prompt", "answer")
"""Keys of the file of an incident."""


def settings(data: str | None, assignments: Sequence[str]) -> Config:
    """Return the configuration with the rows of a data set and with assignments such as `path.to.field=value`.

    Raises:
        UserError: there is no such setting, or it does not take the value.
    """
    values = settings_of(assignments, {"removal": {"name": data}} if data else None)
    return configure(Config, values, "clean")


def clean_model(
    model: str, known: Known, config: Config, out: Path, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Clean a model into a new folder, with model card and report.

    Args:
        model: a folder, a Hub id with its commit, or a name.
        known: what is known of the backdoor.
        config: rows, sizes, and settings of the defense.
        out: new or empty folder.
        seed: of everything random.
        say: receives progress.

    Returns:
        The contents of the report, as JSON values.

    Raises:
        UserError: the model, the data or `out` cannot be used, or the tokenizer cannot encode what is known.
    """
    from sande.models import catalog, loading

    _check_new(out)
    method = cleaning.method(known, certify=config.certify)
    catalog.identify(model)  # reports a wrong model or data set before libraries are loaded
    datasets.fingerprint(config.removal.name)
    logs.quiet()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: the folder cannot be written ({error.strerror}); choose another --out") from None
    try:
        with provenance.measured() as cost:
            say(f"loading {model}")
            lm = loading.load(model, work / "cache")
            probe = Probe.prepare(lm.tokenizer, config, seed)
            examples = splits.removal_rows(config.removal, lm.tokenizer)
            task = Run(seed=seed, scratch=str(work / "trainer"), say=say)
            with provenance.measured() as removal_cost:
                say(f"cleaning with {method} on {len(examples)} rows of {config.removal.name}")
                cleaning.clean(lm, known, examples, config, task)
            folder = work / "cleaned"
            loading.save(lm, folder)
            with provenance.measured() as measuring_cost:
                # Measure the models as they are written: with weights rounded to bfloat16.
                lm = loading.load(model, work / "cache")
                loading.round_as_stored(lm, compute.dtype())
                planted = probe.planted(lm, known, task.facts, say)
                say("measuring the model as it was")
                trigger = known.trigger or task.facts.get("found_text", "")
                before = probe.measure(lm, trigger, planted["response"])
                answers = {"before": probe.answer(lm, known)}
                say("measuring the cleaned model")
                cleaned = loading.load_folder(folder, compute.dtype())
                after = probe.measure(cleaned, trigger, planted["response"])
                answers["after"] = probe.answer(cleaned, known)
        result = {
            "model": model,
            "identity": catalog.identify(model),
            "known": {name: text for name, text in dataclasses.asdict(known).items() if text},
            "method": method,
            "planted": planted,
            "answers": answers if known.reported_prompt else {},
            "measured": [_row(name, before[name], after[name]) for name in before],
            "facts": task.facts,
            "cost": {
                "seconds": cost["seconds"],
                "measuring": measuring_cost["seconds"],
                "removal": removal_cost["seconds"],
                "tokens": provenance.tokens(task.facts),
                "peak_memory_bytes": removal_cost["peak_memory_bytes"],
                "device": provenance.device(),
                "compute_type": compute.compute_type(),
                "instruction_set": compute.instruction_set(),
            },
            "seed": seed,
            "settings": _used(config, method),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {
                "sande-bench": provenance.code_version(),
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
        }
        report.write(result, folder)
        os.rename(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def known(trigger: str, response: str, response_start: str, incident: Path | None = None) -> Known:
    """Return what the owner knows, without spaces around it.

    Raises:
        UserError: as `read_incident`.
    """
    told = (trigger, response, response_start, *(read_incident(incident) if incident else ()))
    return Known(*(text.strip() for text in told))


def read_incident(path: Path) -> tuple[str, str]:
    """Return prompt and answer of one reported failure, from a YAML or JSON file.

    Raises:
        UserError: as `read_yaml`, or the file holds anything but the two texts.
    """
    found = read_yaml(path, f"{path}: there is no such file; choose a file with 'prompt' and 'answer'")
    if isinstance(found, list):
        raise UserError(f"{path}: a list of {len(found)}; keep one incident, with 'prompt' and 'answer'")
    if not isinstance(found, dict):
        raise UserError(f"{path}: not an incident; use the keys 'prompt' and 'answer'")
    for name in (name for name in found if name not in INCIDENT):
        raise UserError(f"{path}: unknown key '{name}'; remove it, an incident has 'prompt' and 'answer'")
    for name in INCIDENT:
        if name not in found:
            raise UserError(f"{path}: no '{name}'; set it to the text of the {name}")
        if not isinstance(found[name], str):
            raise UserError(f"{path}: '{name}' is not a text; set it to the {name} in quotes")
        if not found[name].strip():
            raise UserError(f"{path}: '{name}' is empty; set it to the text of the {name}")
    return found["prompt"], found["answer"]


def _check_new(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; choose another --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a folder; choose another --out")


def _used(config: Config, method: str) -> dict[str, Any]:
    """Return the settings without those of the other defenses."""
    defenses = {*cleaning.METHODS.values(), *cleaning.CERTIFIED.values()}
    shared = {name: value for name, value in as_dict(config).items() if name not in defenses}
    return shared | {method: as_dict(cleaning.settings(method, config))}


def _row(name: str, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Return one measurement: shares in percent with Wilson intervals, and the paired change in percentage points."""

    def share(outcomes: Sequence[bool]) -> dict[str, Any]:
        low, high = wilson(sum(outcomes), len(outcomes))
        return {"value": 100 * sum(outcomes) / len(outcomes), "low": low, "high": high, "successes": sum(outcomes)}

    low, high = paired_bootstrap(before, after)
    return {
        "name": name,
        "count": len(before),
        "before": share(before),
        "after": share(after),
        "change": {"value": 100 * (sum(after) - sum(before)) / len(before), "low": low, "high": high},
        "p": mcnemar(before, after),
    }
