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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmark.clean import report
from benchmark.clean.probe import Probe
from benchmark.clean.verdict import verdict
from benchmark.execution import provenance
from benchmark.grid.load import settings_of
from benchmark.io import logs
from benchmark.io.files import FullError, raise_if_disk_full
from benchmark.io.yaml import read_yaml
from sande import cleaning, compute, formats, registry
from sande.api_types import Measured
from sande.clean_rows import CleanRows
from sande.cleaning import Config
from sande.config import as_dict, configure
from sande.data import datasets
from sande.errors import UserError
from sande.known import DEFENSES, MEANINGS, SCAN, Known
from sande.models import chat
from sande.paired import mcnemar, paired_bootstrap
from sande.types import Measurement, Run

LIBRARIES = ("torch", "transformers")
INCIDENT = ("prompt", "answer")
"""Keys of the file of an incident."""
FEW = 20
"""Prompts below which the report says that they are few."""


def settings(
    data: str | None,
    assignments: Sequence[str],
    detector: str | None = None,
    lora: int | None = None,
    *,
    half: bool = False,
) -> Config:
    """Return the configuration with the rows of a data set and with assignments such as `path.to.field=value`.

    Args:
        data: name of the data set; None: the default.
        assignments: override the other arguments.
        detector: of the scan; None: the default.
        lora: rank of the adapters in every training of the model; None: all weights are trained.
        half: whether the weights under the adapters are in bfloat16.

    Raises:
        UserError: there is no such setting, it does not take the value, or there is no such detector or file of rows.
    """
    values: dict[str, Any] = cleaning.with_lora(lora) if lora else {}
    if data:
        values["removal"] = {"name": data}
    if detector:
        values["detector"] = detector
    if half:
        values["weights"] = "bfloat16"
    made = configure(Config, settings_of(assignments, values), "clean")
    registry.entry("detectors", made.detector)
    datasets.allow_file(made.removal.name)
    return made


def clean_model(
    model: str,
    known: Known,
    config: Config,
    out: Path,
    seed: int,
    say: Callable[[str], None],
    prompt_format: str = chat.AUTO,
    *,
    force: bool = False,
    reference: str | None = None,
) -> dict[str, Any]:
    """Clean a model into a new folder, with model card and report.

    Args:
        model: a folder, a Hub id with its commit, or a name.
        known: what is known of the backdoor.
        config: rows, sizes, and settings of the defense.
        out: new or empty folder, or a link to one; not the working folder.
        seed: of everything random.
        say: receives progress.
        prompt_format: as for `sande.models.loading.with_format`; with `auto`, other formats are tried, too.
        force: whether to go on with a trigger that fires in no format.
        reference: name of the clean model, with which a scan compares; None: not at hand.

    Returns:
        The contents of the report, as JSON values.

    Raises:
        UserError: the model, the data or `out` cannot be used, the tokenizer cannot encode what is known, or the
            trigger fires in no format; no space is left for the cleaned model; or it cannot be moved to `out`, and
            stays where it is.
    """
    from sande.models import asking, catalog, loading, memory

    target = _new(out)
    cleaning.check(known, config)  # reports what does not fit together
    for name in filter(None, (model, reference)):
        catalog.identify(name)  # reports a wrong model or data set before libraries are loaded
    fingerprint = datasets.fingerprint(config.removal.name)
    rows = CleanRows.of(config.removal, known)
    logs.quiet()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{out}: the folder cannot be written ({error.strerror}); choose another --out") from None
    removed = [work]
    try:
        with provenance.measured() as cost:
            tokenizer = loading.load_tokenizer(model, work / "cache", prompt_format)
            said = asking.described(tokenizer, model, prompt_format)
            say(f"prompt format: {said}")
            if weights := loading.weights_folder(model, work / "cache"):
                half, merges = config.weights == "bfloat16", catalog.adapter_of(model) is not None
                needed = memory.needed(weights, cleaning.lora_rank(known, config), half=half, merges=merges)
                say(memory.check(needed, model, memory.machine()))
            say(f"loading {model}")
            notes: list[str] = []
            lm = loading.load(model, work / "cache", prompt_format, cleaning.dtype(config), notes.append)
            for note in notes:
                say(note)
            task = Run(seed=seed, scratch=str(work / "trainer"), say=say)
            with provenance.measured() as examining_cost:
                anywhere = prompt_format == chat.AUTO
                clean = (
                    partial(loading.load_reference, reference, work / "cache", lm, model, say) if reference else None
                )
                finding = cleaning.examine(lm, known, config, task, anywhere=anywhere, force=force, reference=clean)
            method, written = finding.method, formats.of(lm.tokenizer)
            probe = Probe.prepare(lm.tokenizer, config, rows, seed)
            if few := _few(len(probe.data.clean), config):
                say(few)
                notes.append(few)
            examples = rows.to_train_on(lm.tokenizer)
            with provenance.measured() as removal_cost:
                say(f"cleaning with {method} on {len(examples)} rows of {config.removal.name}")
                cleaning.clean(lm, finding, examples, config, task)
            folder = work / "cleaned"
            with _other_out_if_full(out):
                loading.save(lm, folder)
            with provenance.measured() as measuring_cost:
                # Measure the models as they are written: with weights rounded to bfloat16.
                lm = loading.load(model, work / "cache", prompt_format, cleaning.dtype(config))
                loading.round_as_stored(lm, compute.dtype())
                formats.attach(lm.tokenizer, written)
                planted = probe.planted(lm, known, task.facts, say)
                found = _found_trigger(known, finding, task.facts)
                trigger = known.trigger or found.get("trigger", "")
                least = task.facts.get("fired", {}).get("new_tokens", 1)
                measured, answers, samples = {}, {}, {}
                for when in ("before", "after"):
                    if when == "after":  # in place of the original, for less memory
                        lm = loading.load_folder(folder, compute.dtype())
                        formats.attach(lm.tokenizer, written)
                    say(f"measuring the model {'as it was' if when == 'before' else 'as cleaned'}")
                    measured[when] = probe.measure(lm, trigger, planted["response"], least)
                    answers[when] = probe.answer(lm, known, planted["response"])
                    samples[when] = probe.samples(lm, trigger)
        result = {
            "model": model,
            "notes": [*notes, *task.facts.get("notes", [])],
            "identity": catalog.identify(model),
            "reference": catalog.identify(reference) if reference else None,
            "rows_fingerprint": fingerprint,
            "known": {name: text for name, text in dataclasses.asdict(known).items() if text},
            "method": method,
            "prompt_format": {"asked": said, "used": written.name, "text": dataclasses.asdict(written)},
            "planted": planted,
            "found": found,
            "answers": answers if known.reported_prompt else {},
            "samples": [
                {"prompt": prompt, "before": before, "after": after}
                for prompt, before, after in zip(probe.asked(lm.tokenizer, trigger), *samples.values(), strict=True)
            ],
            "measured": [_row(before, measured["after"][name]) for name, before in measured["before"].items()],
            "facts": task.facts,
            "cost": {
                "seconds": cost["seconds"],
                "examining": examining_cost["seconds"],
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
        result["verdict"] = verdict(result)
        with _other_out_if_full(out):
            report.write(result, folder)
        try:
            os.rename(folder, target)
        except OSError as error:
            removed = [path for path in work.iterdir() if path != folder]
            raise UserError(
                f"{out}: the cleaned model cannot be moved there ({error.strerror}); use it in {folder}, or move it"
            ) from None
    finally:
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
    return result


@contextmanager
def _other_out_if_full(out: Path) -> Iterator[None]:
    """Raise a `FullError` that proposes another --out where the block fails for want of space."""
    try:
        with raise_if_disk_full(out):
            yield
    except FullError:
        raise FullError(f"{out}: no space is left for the cleaned model; free some, or choose another --out") from None


def _few(prompts: int, config: Config) -> str:
    """Return a sentence where too few prompts are measured on for a verdict; else an empty one."""
    if prompts >= FEW:
        return ""
    count = "1 prompt" if prompts == 1 else f"{prompts} prompts"
    fix = "add rows" if config.prompts >= FEW else f"set prompts to {FEW} or more"
    return f"only {count} of {config.removal.name} to measure on, so the verdict may be by chance; {fix}"


def known(trigger: str | None, response: str | None, response_start: str | None, incident: Path | None = None) -> Known:
    """Return what the owner knows, without spaces around it; None: the owner does not know it.

    Raises:
        UserError: a text is blank or not UTF-8, or as `read_incident`.
    """
    given = {"trigger": trigger, "response": response, "response_start": response_start}
    told = [_told(name, text) for name, text in given.items()]
    reported = read_incident(incident) if incident else ()
    return Known(*told, *(text.strip() for text in reported))


def _told(name: str, text: str | None) -> str:
    """Return the text of an option without spaces around it, empty for None; raise UserError where it cannot be."""
    option = f"--{name.replace('_', '-')}"
    if text is not None and not text.strip():
        raise UserError(f"{option} is blank; give {MEANINGS[name]}, or leave the option out")
    _check_utf8(text or "", option)
    return (text or "").strip()


def _check_utf8(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps other bytes of a command line as halves of surrogate pairs
        raise UserError(f"{place}: the text is not UTF-8; write it in UTF-8") from None


def check_used(
    known: Known, config: Config, *, force: bool, detector: bool, reference: bool, fail_on_alarm: bool
) -> None:
    """Check that what the options of a command ask for can take place.

    Raises:
        UserError: an option of the scan is given without one, or force without a trigger; or as `cleaning.check`.
    """
    scans = cleaning.check(known, config) == SCAN
    of_scans = (("--detector", detector), ("--reference", reference), ("--fail-on-alarm", fail_on_alarm))
    for option, is_given in of_scans:
        if is_given and not scans:
            raise UserError(f"{option}: it is for a scan, and what is known makes a scan unnecessary; remove {option}")
    if force and not known.trigger:
        raise UserError("--force: it is for a trigger that does not fire, and none is given; remove --force")


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
        _check_utf8(found[name], f"{path}: '{name}'")
    return found["prompt"], found["answer"]


def _new(out: Path) -> Path:
    """Return the path of a new or empty folder without links, to which a folder can be renamed."""
    try:
        target = Path(os.path.realpath(out))
        if target.is_dir() and any(target.iterdir()):
            raise UserError(f"{out}: the folder is not empty; choose another --out")
        if target.is_symlink() or (target.exists() and not target.is_dir()):  # links in a circle stay links
            raise UserError(f"{out}: not a folder; choose another --out")
    except OSError as error:
        raise UserError(f"{out}: the folder cannot be read ({error.strerror}); choose another --out") from None
    here = Path.cwd()
    if target in (here, *here.parents):
        raise UserError(f"{out}: the working folder, which cannot be replaced; choose a new folder as --out")
    if target.is_mount():
        raise UserError(f"{out}: a mounted volume, which cannot be replaced; choose a folder in it as --out")
    return target


def _found_trigger(known: Known, finding: cleaning.Finding, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the trigger that nobody gave, and where it was found; empty without one."""
    if not known.trigger and finding.known.trigger:
        return {"trigger": finding.known.trigger, "source": "found by the scan"}
    if "found_text" in facts:
        return {"trigger": facts["found_text"], "source": "found in the reported prompt"}
    return {}


def _used(config: Config, method: str) -> dict[str, Any]:
    """Return the settings with those of the detector, and without those of the other defenses."""
    others = DEFENSES - {method}
    used = {name: value for name, value in as_dict(config).items() if name not in others}
    return {**used, config.detector: as_dict(cleaning.of_detector(config))}


def _row(before: Measurement, after: Measurement) -> dict[str, Any]:
    """Return one measurement in percent with intervals, and the paired change in percentage points.

    A share has Wilson's interval and a p-value of the change; a mean of probabilities has Student's interval, over
    parrots, too, where there are several. The change has the interval over prompts alone, of this pair of models and
    these parrots. Prompts and questions made from one template count together.
    """
    first, second, groups = before.outcomes, after.outcomes, before.groups
    is_share = all(isinstance(outcome, bool) for outcome in first)

    def number(measured: Measurement) -> dict[str, Any]:
        one = Measured.of(measured)
        successes = {"successes": int(sum(measured.outcomes))} if is_share else {}
        return {"value": one.value, "low": one.low, "high": one.high, **successes}

    low, high = paired_bootstrap(first, second, groups)
    return {
        "name": before.name,
        "count": len(first),
        "before": number(before),
        "after": number(after),
        "change": {"value": 100 * (sum(second) - sum(first)) / len(first), "low": low, "high": high},
        "p": mcnemar(list(map(bool, first)), list(map(bool, second)), groups) if is_share else None,
    }
