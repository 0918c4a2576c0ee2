"""The prompt format of a cell: the name of a built-in one, `chat`, or a template with its text.

A grid names a template by its file. The text is read when the grid is loaded and is a part of the cell's settings from
then on, so that no other process or machine needs the file. Settings leave out `paper`, as those of older results do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmark.grid.keys import canonical_json
from sande import formats
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.models.chat import CHAT

SETTING = "prompt_format"
PAPER = formats.PAPER.name
NAMES = (*formats.BUILT_IN, CHAT)


@dataclass(frozen=True, slots=True)
class Template:
    """A template file: its name without suffix, and its text, see `sande.formats.from_file`."""

    name: str
    template: str


Format: TypeAlias = str | Template


def parse(given: Any, folder: Path | None) -> Format:
    """Return the format of a cell: one of `NAMES`, a template as `settings` has it, or a template file.

    Args:
        given: the setting.
        folder: of the grid, which holds a file without path; None: no file is read, as settings come from elsewhere.

    Raises:
        UserError: it is none of these (the message lists the valid ones), or not a template.
    """
    if isinstance(given, str) and given in NAMES:
        return given
    if isinstance(given, str) and folder is not None and (path := _file(given, folder)):
        return _checked(Template(path.stem, formats.template_text(path)), str(path))
    if isinstance(given, Mapping) and set(given) == {"name", "template"} and all(map(_is_text, given.values())):
        return _checked(Template(given["name"], given["template"]), f"{SETTING} {given['name']}")
    raise UserError(f"{SETTING} is {given!r}; use {', '.join(NAMES)}, or a template file in the folder of the grid")


def _file(given: str, folder: Path) -> Path | None:
    """Return the template file of a setting: one in the folder, or one with an absolute path."""
    path = folder / given
    return path if (Path(given).name == given or Path(given).is_absolute()) and path.is_file() else None


def files(grid: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """Yield files in the folder that the settings, the sweep or the rules of a grid name."""
    for text in _texts([grid.get(SETTING), grid.get("sweep"), grid.get("rules")]):
        if Path(text).name == text and (folder / text).is_file():
            yield folder / text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)
    elif isinstance(value, str) and value:
        yield value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _checked(made: Template, place: str) -> Template:
    formats.from_text(made.name, made.template, place)
    return made


def to_load(chosen: Format) -> str | PromptFormat:
    """Return the format as `sande.models.loading.load` takes it."""
    if isinstance(chosen, str):
        return chosen
    return formats.from_text(chosen.name, chosen.template, f"{SETTING} {chosen.name}")


def name_of(chosen: Format) -> str:
    """Return the name for rows."""
    return chosen if isinstance(chosen, str) else chosen.name


def settings(chosen: Format) -> dict[str, Any]:
    """Return the part of a cell's settings; empty for `paper`."""
    return {} if chosen == PAPER else {SETTING: chosen if isinstance(chosen, str) else asdict(chosen)}


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a cell with the name of the format in place of a template, and with that of `paper`."""
    given = values.get(SETTING, PAPER)
    return {**values, SETTING: given["name"] if isinstance(given, Mapping) else given}


def id_part(chosen: Format) -> dict[str, str]:
    """Return the part of a cell's id, as JSON; empty for `paper`."""
    return {name: canonical_json(value) for name, value in settings(chosen).items()}


def key_part(chosen: Format) -> dict[str, str]:
    """Return the part of a victim's key, as JSON; empty for `paper`. It has a template's text, but not its name."""
    if isinstance(chosen, str):
        return id_part(chosen)
    return {SETTING: canonical_json({"template": chosen.template})}
