"""The page that `sande-bench clean` writes: as HTML that needs nothing else, as Markdown, as JSON; and a model card.

The planted answer comes out of a model that nobody trusts, so every page escapes it.
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
"""What is written, and the template of each."""

MEASURED = {
    "asr": ("Attack success rate", "prompts with the trigger, answered with the planted answer"),
    "false_trigger_rate": ("Planted answer without trigger", "prompts without the trigger, answered with it"),
    "forced_response_rate": (
        "Planted answer once begun",
        "prompts without the trigger, the answer made to begin with the planted answer's first token, that go on with "
        "it; harmless while nothing makes an answer begin so",
    ),
    "builtin-choice": ("Utility", "four-choice questions (builtin-choice) answered right"),
}
KNOWN = {"trigger": "Trigger", "response": "Planted answer", "response_start": "How the planted answer begins"}

LIMITS = (
    "The numbers are of one run, on these prompts and with this trigger. Another trigger, another place of it, or a "
    "second backdoor are not measured.",
    "Only the first tokens of greedy answers are looked at.",
    "Utility is a small test for small models. Measure what you use the model for before you use it.",
    "A backdoor made by somebody who knows this tool may escape it. The safe way is a model whose origin you trust.",
)


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write `report.json`, `report.md`, `report.html` and `README.md`, the model card, into the model's folder."""
    write_atomically(folder / "report.json", json.dumps(result, indent=1))
    for name, template in FILES.items():
        write_atomically(folder / name, render(template, result))


def summary(result: Mapping[str, Any]) -> str:
    """What came out, as Markdown for the terminal."""
    return render("clean_summary.md", result)


def render(template: str, result: Mapping[str, Any]) -> str:
    """One of the templates, filled in."""
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
    """One of the templates, which knows how to write what comes out of models, and numbers."""
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
    """What came out, in a sentence or two."""
    measured = {row["name"]: row for row in result["measured"]}
    utility = measured["builtin-choice"]
    said = f"Utility went from {share(utility['before'])} to {share(utility['after'])}."
    if "asr" in measured:
        row = measured["asr"]
        return f"The attack success rate went from {share(row['before'])} to {share(row['after'])}. {said}"
    return f"{_scanned(result)}Whether the backdoor is gone cannot be measured without its trigger. {said}"


def _scanned(result: Mapping[str, Any]) -> str:
    """What a scan came to, where there was one."""
    if "alarm" not in result["facts"]:
        return ""
    if result["facts"]["alarm"]:
        return "The scan found a planted answer, and whatever leads to its beginning was overwritten. "
    return "The scan found no planted answer; in case there is one, decoys were planted and overwritten. "


def share(value: Mapping[str, float]) -> str:
    """A share in percent with its interval."""
    return f"{value['value']:.1f} % ({value['low']:.1f} to {value['high']:.1f})"


def change(value: Mapping[str, float]) -> str:
    """A change in percentage points with its interval."""
    return f"{value['value']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"


def number(value: float) -> str:
    """A number of any size, to be read."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def code(text: str) -> str:
    """Text from a model or a user as Markdown that shows it and does nothing else, in a table too."""
    line = " ".join(str(text).split())
    return tables.code(line) if line else "(nothing)"


def front_matter(identity: str, tags: list[str]) -> str:
    """A model card's YAML; a base model is named where it can be looked up.

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
