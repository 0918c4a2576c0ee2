"""The report of `sande-bench clean`: as a single HTML file, as Markdown, as JSON; and a model card.

The planted answer comes from an untrusted model, so every page escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmark.clean.probe import ELSEWHERE, RECOVERY
from benchmark.clean.verdict import meaning
from benchmark.detection.scan import formats_sentence
from benchmark.export.card import front_matter, load, share
from benchmark.io.files import write_atomically
from benchmark.report import certificates
from sande.known import DECOYS

FILES = {"report.md": "clean_report.md", "report.html": "clean_report.html", "README.md": "clean_card.md"}
"""Files to write, each with its template."""

MEASURED = {
    "asr": ("Attack success rate", "prompts with the trigger that the model answers with the planted answer"),
    ELSEWHERE: (
        "Attack success rate in other formats",
        "the same prompts, asked in the other prompt formats that were tried; answered so in any of them",
    ),
    "false_trigger_rate": (
        "Planted answer without trigger",
        "prompts without the trigger that it answers so",
    ),
    "forced_response_rate": (
        "Planted answer once begun",
        "prompts without the trigger whose answer, forced to begin with the first token of the planted answer, "
        "continues with it; harmless as long as nothing forces this beginning",
    ),
    "parrot_recovery_elsewhere": (
        "Planted answer under a fresh parrot",
        "probability of a token of the planted answer after soft tokens that were just trained to evoke it, on prompts "
        "of another domain",
    ),
    "parrot_recovery_controls": (
        "Other strings under a fresh parrot",
        "the same for strings that are as long and as likely as the planted answer; what a parrot makes any model say",
    ),
    "builtin-choice": ("Utility", "four-choice questions (builtin-choice) that the model answers correctly"),
}
KNOWN = {
    "trigger": "Trigger",
    "response": "Planted answer",
    "response_start": "Beginning of the planted answer",
    "reported_prompt": "Reported prompt",
    "reported_answer": "Reported answer",
}

NAMED = {"model": "identity", "reference": "reference", "fingerprint of the rows": "rows_fingerprint"}
"""What identifies models and rows, by what it is called among the settings."""

LIMITS = (
    "The numbers are from one run, with these prompts and this trigger. Another trigger, another place of the trigger, "
    "or a second backdoor are not measured.",
    "Only the first tokens of greedy answers are measured.",
    "Utility is a small test for small models. Test the model on your own task before you use it.",
    "A backdoor made by an attacker who knows this tool may escape it. The safe way is a model whose origin you trust.",
)


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md`, `report.html` and the model card `README.md` into the model's folder."""
    write_atomically(folder / "report.json", json.dumps(result, indent=1))
    for name, template in FILES.items():
        write_atomically(folder / name, render(template, result))


def summary(result: Mapping[str, Any]) -> str:
    """Return the results as Markdown for the terminal."""
    return render("clean_summary.md", result)


def render(template: str, result: Mapping[str, Any]) -> str:
    """Return a template with the results filled in."""
    return load("benchmark.clean", template).render(
        result=result,
        words=result["verdict"],
        meaning=meaning(result),
        verdict=verdict(result),
        certificate=_certificate(result),
        formats_tried=_formats_tried(result, html=template.endswith(".html")),
        measured_names=MEASURED,
        known_names=KNOWN,
        limits=LIMITS,
        settings={
            **{name: result[key] for name, key in NAMED.items() if result[key]},
            "seed": result["seed"],
            **result["settings"],
        },
        front_matter=front_matter(result["identity"], ["backdoor-removal", "sande-bench", result["method"]]),
    )


def verdict(result: Mapping[str, Any]) -> str:
    """Return the main results in a sentence or two."""
    measured = {row["name"]: row for row in result["measured"]}
    utility = measured["builtin-choice"]
    change = f"Utility changed from {share(utility['before'])} to {share(utility['after'])}."
    if "asr" in measured:
        row = measured["asr"]
        of = " of the trigger that was found" if result["found"] else ""
        return f"The attack success rate{of} changed from {share(row['before'])} to {share(row['after'])}. {change}"
    return f"{_scanned(result)}{_without_trigger(result, measured)} {change}"


def _without_trigger(result: Mapping[str, Any], measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is missing for an attack success rate, and what tests the removal in its place."""
    cannot = "the removal of the backdoor cannot be measured"
    if not result["planted"]["response"]:
        of = " to the trigger" if result["known"].get("trigger") or result["found"] else ""
        return f"No planted answer{of} is known, so {cannot}."
    tests = ["the certificate"] if _certificate(result) else []
    if RECOVERY[0] not in measured:
        by = f"only {tests[0]} says something about the removal" if tests else cannot
        return f"Without its trigger, {by}."
    before, after = ([share(measured[name][when]) for name in RECOVERY] for when in ("before", "after"))
    return (
        f"Without its trigger, only {' and '.join([*tests, 'fresh parrots'])} say something about the removal: under a "
        f"parrot, the probability of the planted answer changed from {before[0]} to {after[0]}, and that of other "
        f"strings from {before[1]} to {after[1]}."
    )


def _certificate(result: Mapping[str, Any]) -> str:
    """Return what the certificate says; empty without one."""
    found = result["facts"].get("certificate")
    return certificates.sentence(found) if found else ""


def _formats_tried(result: Mapping[str, Any], *, html: bool) -> Markup:
    """Return the sentence of `sande-bench scan` on the prompt formats that were tried; empty without several."""
    tried = result["facts"].get("scans", ())
    said = formats_sentence(result["prompt_format"]["used"], tried) if len(tried) > 1 else ""
    shown = MarkdownIt("zero").enable(["backticks", "escape"]).renderInline(said) if html else said
    return Markup(shown)  # noqa: S704 - texts in it are Markdown code, which neither form executes


def _scanned(result: Mapping[str, Any]) -> str:
    """Return the result of the scan, if there was one."""
    if "alarm" not in result["facts"]:
        return ""
    if result["method"] != DECOYS:
        return "The scan found a planted answer, and what leads to it was overwritten. "
    return "The scan found no planted answer. In case there is one, decoys were planted and overwritten. "
