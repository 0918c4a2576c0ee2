"""Read YAML 1.2 strictly: no key twice, no code, no unbounded aliases; and write what reads as the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sande import bounds
from sande.errors import UserError

MOST_BYTES = 4 * 2**20  # of a file; weights given by mistake for a grid are refused without reading them all
MOST_VALUES = 100_000  # of a file, aliases expanded


class _RefusedError(yaml.MarkedYAMLError):
    """Valid YAML that cannot be a setting."""


class _Loader(yaml.SafeLoader):
    """Parse words and numbers by YAML 1.2's core schema, and refuse a key that appears twice.

    PyYAML follows YAML 1.1, where `1:30` is 90, `017` is 15, `no` is false and `1e-4` is text.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key '{key.value}' appears twice; remove one"
                    raise _RefusedError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """Return a whole number of at most 64 bits, as results cannot hold a larger one."""
        try:
            text = self.construct_scalar(node)
            number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:  # it has more digits than Python converts
            number = 2**63
        if not -(2**63) <= number < 2**63:
            problem = "a whole number of more than 64 bits; use a smaller one"
            raise _RefusedError(problem=problem, problem_mark=node.start_mark)
        return number


class _Dumper(yaml.SafeDumper):
    """Quote texts that YAML 1.1 or 1.2 would read as something else."""


# https://yaml.org/spec/1.2.2/#1032-tag-resolution; and `<<`, which merges mappings.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1
for _name, (_form, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_form})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def read_yaml(path: Path, missing: str) -> Any:
    """Return the content of a YAML file.

    Args:
        path: of the file.
        missing: message where there is no such file.

    Raises:
        UserError: the file is missing, cannot be read, is too large or not UTF-8; or as for `parse`.
    """
    try:
        content = bounds.read(path, MOST_BYTES)
    except FileNotFoundError:
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose a YAML file that you may read") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start + 1}); save the YAML file as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """Return the content of YAML text.

    Args:
        text: one document.
        where: its name in messages.

    Raises:
        UserError: it is not YAML, has a key twice, or holds too many values.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        count = _count(value, {})
    except RecursionError:
        raise UserError(f"{where}: nested too deep, or within itself; use fewer levels") from None
    except ValueError as error:  # an invalid date
        raise UserError(f"{where}: not YAML ({error}); put it in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark and "\n" in text else where
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", "unreadable"))
        if isinstance(error, _RefusedError):
            raise UserError(f"{place}: {problem}") from None
        tab, tag = r"'\t'" in problem, "for the tag" in problem
        hint = "use spaces to indent" if tab else "remove the tag" if tag else "correct it there or just before"
        raise UserError(f"{place}: not YAML ({problem.removeprefix('but ')}); {hint}") from None
    if count > MOST_VALUES:
        raise UserError(f"{where}: holds more than {MOST_VALUES} values, aliases expanded; use fewer")
    return value


def dump(value: Any) -> str:
    """Return plain values as YAML that `parse` reads as the same values."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _count(value: Any, known: dict[int, int]) -> int:
    """Return the number of values in a value, itself included; an alias counts each time (`known`: counts by id).

    Raises:
        yaml.YAMLError: a text cannot be written as UTF-8, or be a name.
    """
    if isinstance(value, str) and ("\0" in value or not value.isprintable()):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _RefusedError(problem="half of a surrogate pair; remove it") from None
        if "\0" in value:
            raise _RefusedError(problem="a text with a NUL character; remove it")
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if id(value) not in known:
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]
