"""Settings of methods in the API reference: a table in place of calls of `sande.config.setting`.

A griffe extension: it reads the source and imports nothing.
"""

from __future__ import annotations

import ast
from typing import Any

from griffe import Class, Docstring, ExprCall, Extension, Parser


class Settings(Extension):
    """Describe the fields that `setting(default, meaning, source)` makes in the docstring of their class."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Add a section "Attributes" to the docstring of a class with settings."""
        fields = {name: member.value for name, member in cls.members.items() if member.is_attribute}
        lines = [
            f"    {name}: {_described(value)}"
            for name, value in fields.items()
            if isinstance(value, ExprCall) and str(value.function) == "setting"
        ]
        if lines:
            text = cls.docstring.value if cls.docstring else ""
            whole = "\n".join([text, "", "Attributes:", *lines])
            cls.docstring = Docstring(whole, parent=cls, parser=Parser.google)


def _described(call: ExprCall) -> str:
    """Return meaning, default and source of one setting, in one line of Markdown."""
    parsed = ast.parse(str(call), mode="eval").body
    if not isinstance(parsed, ast.Call):
        raise TypeError(f"{call}: not a call")
    default, meaning, *source = parsed.args
    words = [f"{_text(meaning)}. Default: `{ast.unparse(default)}`."]
    return " ".join([*words, *(f"Source: {_text(one)}." for one in source if _text(one))])


def _text(node: ast.expr) -> str:
    """Return the words of a string; of anything else, its code."""
    try:
        return str(ast.literal_eval(node)).rstrip(".")
    except ValueError:
        return f"`{ast.unparse(node)}`"
