"""Scan one model for a planted response, without Ray: `sande-bench scan`.

FOLDER/scan.json has the settings, the candidates, the seconds, and what computed them; scan.md, scan.png and scan.svg
show them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.execution import provenance
from benchmark.io import logs, plots
from benchmark.io import markdown as io_markdown
from benchmark.io.files import write_atomically
from benchmark.io.markdown import markdown_table, plain
from benchmark.records import mark
from sande import bounds, compute, registry, scanning, types
from sande.candidates import as_records
from sande.config import as_dict
from sande.errors import UserError
from sande.models import chat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sande.types import Example


SHOWN = 10  # candidates in the table and the figure; the JSON file has all
_COMPARED = {  # what the p-value of a detector compares
    "first_token": "of this token among the model's ordinary first tokens",
    "haystack": "of this string among random strings; not a rate of false alarms",
    "all": "of the detectors that have one, the lowest times their number",
}


@dataclass(frozen=True, slots=True)
class How:
    """The detector of a scan, with its settings and inputs.

    Attributes:
        detector: its name.
        settings: overrides of its defaults.
        data: data set of clean rows.
        rows: number of rows to use, the last ones. Victims of this suite are trained on the first 90 %.
        reference: name of the clean model; None if it is not available.
        seed: of the scan.
        prompt_format: as for `sande.models.loading.with_format`; with `auto`, other formats are tried, too, and with
            None a model is asked in the format in which a cell trained it.
    """

    detector: str
    settings: Mapping[str, Any]
    data: str
    rows: int
    reference: str | None
    seed: int
    prompt_format: str | None = chat.AUTO

    def record(self) -> dict[str, Any]:
        """Return all that decides what a scan finds in a model, as in `scan.json`."""
        return {
            "reference": self.reference,
            "detector": self.detector,
            "code": registry.code_version(registry.module_of("detectors", self.detector)),
            "settings": as_dict(registry.config("detectors", self.detector, self.settings)),
            "data": self.data,
            "rows": len(self.examples()),
            "seed": self.seed,
            "format": self.prompt_format,
        }

    def examples(self) -> tuple[Example, ...]:
        """Return the clean rows."""
        return scanning.examples(self.data, self.rows)


def scan(model: str, how: How, models_cache: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run a detector on a model, and return the record that `write` takes.

    Args:
        model: name, Hub id or folder, see `sande.models.loading.load`.
        how: the detector, its settings and its inputs.
        models_cache: folder for models that are made or converted once.
        say: receives progress.

    Raises:
        UserError: a name, a setting or a model cannot be used, or the models' vocabularies differ.
    """
    config = registry.config("detectors", how.detector, how.settings)
    from sande.models import asking, catalog, loading

    identities = [catalog.identify(name) for name in (model, how.reference) if name is not None]
    examples = how.examples()
    logs.quiet()  # after the checks, as it loads libraries
    tokenizer = loading.load_tokenizer(model, models_cache, how.prompt_format)
    say(f"prompt format: {asking.described(tokenizer, model, how.prompt_format)}")
    notes: list[str] = []
    suspect = loading.load(model, models_cache, how.prompt_format, say=notes.append)
    clean = None
    if how.reference:
        clean = loading.load_reference(how.reference, models_cache, suspect, model, notes.append)
    for note in notes:
        say(note)
    with tempfile.TemporaryDirectory() as scratch:
        run = types.Run(seed=how.seed, scratch=scratch, say=say)
        begin = time.perf_counter()
        found = scanning.scan(
            *(suspect, how.detector, config, examples, run, clean),
            data=how.data,
            anywhere=how.prompt_format == chat.AUTO,
        )
        seconds = time.perf_counter() - begin
    return {
        "model": model,
        "model_identity": identities[0],
        "notes": [*notes, *found.facts.get("notes", [])],
        **how.record(),
        **provenance.computed_with(compute.compute_type(), workers=1),
        "seconds": seconds,
        "score": found.score,
        "p": found.p,
        "alarm": found.alarm,
        "candidates": as_records(found.candidates),
        "triggers": as_records(found.triggers),
        **{name: found.facts[name] for name in scanning.FACTS if name != "detector"},
        "found_by": found.facts["detector"],
        "facts": {name: value for name, value in found.facts.items() if name not in scanning.FACTS},
    }


def write(record: dict[str, Any], folder: Path) -> str:
    """Write the files of a scan into a folder, which is created if missing; return the Markdown.

    Without candidates there is no figure, and that of an earlier scan is removed.

    Raises:
        UserError: the folder cannot be written.
    """
    text = markdown(record)
    mark.claim(folder, mark.SCAN, "--out")
    try:
        write_atomically(folder / "scan.json", json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False))
        write_atomically(folder / "scan.md", text)
        if record["candidates"]:
            plots.save(draw(record), folder, "scan")
        else:  # an earlier scan's figure may show an alarm
            for suffix in ("png", "svg"):
                (folder / f"scan.{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be written ({error.strerror}); choose another --out") from None
    return text


def write_again(folder: Path) -> None:
    """Write the table of a scan again from its `scan.json`.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "scan.json"
    try:
        text = markdown(bounds.read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path}: the file is damaged; scan again") from None
    write_atomically(folder / "scan.md", text)


def markdown(record: dict[str, Any]) -> str:
    """Return the candidates and suspected triggers as tables, and the result in sentences."""
    result = "the model looks like a victim" if record["alarm"] else "no alarm"
    if record["alarm"] and record.get("facts", {}).get("response_at") == "end":
        result += " whose response follows its answers"
    lines = [f"### {plain(record['detector'])} on {plain(record['model'])}", ""]
    lines += _table("Candidate", record["candidates"])
    if triggers := record.get("triggers"):
        lines += ["", *_table("Suspected trigger", triggers)]
    reference = f", compared with {plain(record['reference'])}" if record["reference"] else ""
    lines += [
        "",
        f"Score {record['score']:.2f}{_by(record)}{_rule(record)}: {result}.{_about_p(record)} {plain(record['rows'])} "
        f"clean rows of {plain(record['data'])}{reference}, seed {plain(record['seed'])}, {record['seconds']:.0f} s.",
        "",
    ]
    if tried := record.get("formats_tried"):
        lines += [formats_sentence(record["prompt_format"], tried), ""]
    if calibrated := record.get("calibrated"):
        lines += [plain(calibrated), ""]
    for note in record.get("notes", []):
        lines += [plain(note), ""]
    return "\n".join(lines)


def _by(record: Mapping[str, Any]) -> str:
    """Return whose the score is, in Markdown, where it is not the chosen detector's, whose scores have other units."""
    found_by = _found_by(record)
    return "" if found_by == record["detector"] else f" by {token_code(found_by)}"


def _found_by(record: Mapping[str, Any]) -> str:
    return str(record.get("found_by", record["detector"]))


def _is_by_p(record: Mapping[str, Any]) -> bool:
    """Return whether the alarm was by p, not by the score: what `sande.scanning` adds to a detector always is."""
    if _found_by(record) != scanning.CHEAP:
        return False
    return bool(record["detector"] != scanning.CHEAP or record.get("settings", {}).get("alarm_by") == "own")


def _rule(record: Mapping[str, Any]) -> str:
    """Return when there is an alarm, in brackets; empty where that is not known, as of a detector of a plug-in."""
    settings = record.get("settings", {})
    if _is_by_p(record):
        if record.get("p") is None:
            return ""
        tried = record.get("formats_tried")  # formats share the rate
        level = tried[0]["level"] if tried else settings["false_alarms"]
        return f", p {record['p']:.2g} (alarm up to p {level:.2g})"
    threshold = settings.get("threshold")
    is_rule = threshold is not None and record["alarm"] == (record["score"] > threshold)
    return f" (alarm above {threshold:.2f})" if is_rule else ""


def _about_p(record: Mapping[str, Any]) -> str:
    """Return a sentence on p and what it compares; empty where there is none."""
    if record.get("p") is None:
        return ""
    value = "is" if _is_by_p(record) else f"{record['p']:.2g}"  # the rule has the number
    return " ".join(filter(None, (" p", value, _COMPARED.get(_found_by(record))))) + "."


def formats_sentence(prompt_format: str, tried: Sequence[Mapping[str, Any]]) -> str:
    """Return the prompt format of a scan, and the scores in those that were tried, in Markdown."""
    said = f"Prompt format: {token_code(prompt_format)}."
    if len(tried) == 1:
        return said
    several = len({one.get("detector") for one in tried}) > 1  # whose scores have other units
    each = ", ".join(
        f"{token_code(one['format'])} {one['score']:.2f}{' by ' + token_code(one['detector']) if several else ''} "
        f"({'alarm' if one['alarm'] else 'no alarm'})"
        for one in tried
    )
    shared = scanning.RULE.format(level=tried[0]["level"])
    return f"{said} Formats tried, with their scores: {each}. {shared}"


def _table(head: str, candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            str(rank),
            token_code(each["text"]),
            plain(" ".join(map(str, each["ids"]))),
            f"{each['score']:.2f}",
        )
        for rank, each in enumerate(candidates[:SHOWN], start=1)
    ]
    return markdown_table(("Rank", head, "Token ids", "Score"), rows, "rllr") if rows else []


def token_code(text: str) -> str:
    """Return a string as Markdown code, with line breaks, bars and what is not printed escaped for a table's cell."""
    return io_markdown.code(json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"'))


def draw(record: dict[str, Any]) -> Figure:
    """Draw the candidates' scores as bars, the best at the top."""
    shown = record["candidates"][:SHOWN]
    figure = plots.blank(width=7, rows=1)
    axes = figure.add_subplot()
    axes.barh(range(len(shown)), [each["score"] for each in shown], color="#b33" if record["alarm"] else "#37a")
    labels = [json.dumps(each["text"], ensure_ascii=True)[1:-1].replace("$", r"\$") for each in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("score")
    found_by = plots.literal(record.get("found_by", record["detector"]))
    axes.set_title(f"{found_by}: {'alarm' if record['alarm'] else 'no alarm'}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
