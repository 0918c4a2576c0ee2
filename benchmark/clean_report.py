"""The report of `sande-bench clean`: as a single HTML file, as Markdown, as JSON; and a model card.

The planted answer comes from an untrusted model, so every page escapes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import tables
from benchmark.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Template

FILES = {"report.md": "clean_report.md", "report.html": "clean_report.html", "README.md": "clean_card.md"}
"""Files to write, each with its template."""

MEASURED = {
    "asr": ("Attack success rate", "prompts with the trigger that the model answers with the planted answer"),
    "false_trigger_rate": (
        "Planted answer without trigger",
        "prompts without the trigger that it answers so",
    ),
    "forced_response_rate": (
        "Planted answer once begun",
        "prompts without the trigger whose answer, forced to begin with the first token of the planted answer, "
        "continues with it; harmless as long as nothing forces this beginning",
    ),
    "builtin-choice": ("Utility", "four-choice questions (builtin-choice) that the model answers correctly"),
}
KNOWN = {"trigger": "Trigger", "response": "Planted answer", "response_start": "Beginning of the planted answer"}

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
    return load(template).render(
        result=result,
        verdict=verdict(result),
        measured_names=MEASURED,
        known_names=KNOWN,
        limits=LIMITS,
        settings={"model": result["identity"], "seed": result["seed"], **result["settings"]},
        front_matter=front_matter(result["identity"], ["backdoor-removal", "sande-bench", result["method"]]),
    )


def load(template: str) -> Template:
    """Return a template, with filters for numbers and for text of models."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("benchmark"),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "share": share, "change": change, "number": number}
    return environment.get_template(template)


def verdict(result: Mapping[str, Any]) -> str:
    """Return the main results in a sentence or two."""
    measured = {row["name"]: row for row in result["measured"]}
    utility = measured["builtin-choice"]
    change = f"Utility changed from {share(utility['before'])} to {share(utility['after'])}."
    if "asr" in measured:
        row = measured["asr"]
        return f"The attack success rate changed from {share(row['before'])} to {share(row['after'])}. {change}"
    return f"{_scanned(result)}Without its trigger, the removal of the backdoor cannot be measured. {change}"


def _scanned(result: Mapping[str, Any]) -> str:
    """Return the result of the scan, if there was one."""
    if "alarm" not in result["facts"]:
        return ""
    if result["facts"]["alarm"]:
        return "The scan found a planted answer, and the triggers of its beginning were overwritten. "
    return "The scan found no planted answer. In case there is one, decoys were planted and overwritten. "


def share(value: Mapping[str, float]) -> str:
    """Format a share in percent with its interval."""
    return f"{value['value']:.1f} % ({value['low']:.1f} to {value['high']:.1f})"


def change(value: Mapping[str, float]) -> str:
    """Format a change in percentage points with its interval."""
    return f"{value['value']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"


def number(value: float) -> str:
    """Format a number of any size with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def code(text: str) -> str:
    """Return text from a model or a user as Markdown code that is safe in a table too."""
    line = " ".join(str(text).split())
    return tables.code(line) if line else "(nothing)"


def front_matter(identity: str, tags: list[str]) -> str:
    """Return the YAML of a model card; it names the base model if that is on the Hub.

    Args:
        identity: of the base model, see `sande.models.identify`.
        tags: of the model.
    """
    from huggingface_hub import ModelCardData

    base = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}", identity)
    return ModelCardData(
        base_model=base[1] if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    ).to_yaml()
