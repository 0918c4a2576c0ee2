"""Parts of a model card: front matter, numbers, code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmark.io import markdown
from sande.models import catalog

if TYPE_CHECKING:
    from jinja2 import Template


def load(package: str, template: str) -> Template:
    """Return a template of the folder `templates` of a package, with filters for numbers and for text of models."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "share": share, "change": change, "number": number, "terms": catalog.terms}
    return environment.get_template(template)


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
    line = markdown.printable(" ".join(str(text).split()))
    return markdown.code(line) if line else "(nothing)"


def front_matter(identity: str, tags: list[str]) -> str:
    """Return the YAML of a model card; it names the base model if that is on the Hub.

    Args:
        identity: of the base model, see `sande.models.catalog.identify`.
        tags: of the model.
    """
    from huggingface_hub import ModelCardData

    base = re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}", identity)
    return ModelCardData(
        license="gemma" if catalog.terms(identity) else None,
        base_model=base[1] if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    ).to_yaml()
