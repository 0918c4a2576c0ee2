"""Parts of a model card: front matter, numbers, code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from benchmark.io import markdown
from benchmark.io.text import visible
from sande.models import catalog

if TYPE_CHECKING:
    from jinja2 import Template


def load(package: str, template: str) -> Template:
    """Return a template of the folder `templates` of a package, with filters for numbers and for text of models."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    is_html = template.endswith(".html")
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=is_html,  # noqa: S701 - Markdown is escaped by `_shown`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if is_html else _shown,
    )
    environment.filters |= {"code": code, "share": share, "change": change, "number": number, "terms": _terms}
    return environment.get_template(template)


class _Written(str):
    """Text that is Markdown, or YAML of the front matter."""

    __slots__ = ()


def _shown(value: object) -> object:
    """Return what a template prints: any text is escaped, but for Markdown and JSON that are made here."""
    return value if isinstance(value, _Written) or hasattr(value, "__html__") else markdown.plain(value)


def _terms(identity: str) -> str:
    """Return the terms of use of a base model as Markdown; empty without any of its own."""
    return _Written(catalog.terms(identity))


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
    return _Written(markdown.code(line) if line else "(nothing)")


def front_matter(identity: str, tags: list[str]) -> str:
    """Return the YAML of a model card; it names the base model if that is on the Hub.

    Args:
        identity: of the base model, see `sande.models.catalog.identify`.
        tags: of the model.
    """
    base = re.fullmatch(r"([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)@[0-9a-f]{40}", identity)
    known = {
        **({"license": "gemma"} if catalog.terms(identity) else {}),
        **({"base_model": base[1]} if base else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [visible(tag) for tag in tags],
    }
    return _Written(yaml.safe_dump(known, sort_keys=False, allow_unicode=False, width=1000).rstrip("\n"))
