"""YAML as people write it, read so that nothing in it is lost without a word, run as code, or unfolded without end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sande.errors import UserError

MOST_BYTES = 4 * 2**20  # of a file; whoever gives a model's weights for a grid need not wait until they are read
MOST_VALUES = 100_000  # of a file, aliases unfolded


class _RefusedError(yaml.MarkedYAMLError):
    """What is YAML, and yet no setting can be."""


class _Loader(yaml.SafeLoader):
    """`1e-4` is a number (PyYAML follows YAML 1.1, where it is text), and no key may stand twice in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key '{key.value}' stands there twice; take one out"
                    raise _RefusedError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """Of 64 bits: no setting takes more, and no file of results could hold it."""
        try:
            number = int(self.construct_yaml_int(node))
        except ValueError:  # of more digits than Python converts
            number = 2**63
        if not -(2**63) <= number < 2**63:
            problem = "a whole number of more than 64 bits; give a smaller one"
            raise _RefusedError(problem=problem, problem_mark=node.start_mark)
        return number


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def read(path: Path, missing: str) -> Any:
    """What a YAML file holds.

    Args:
        path: of the file.
        missing: the sentence where there is none.

    Raises:
        UserError: it is missing, cannot be read, is too large, no UTF-8, or as `parse`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(missing) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a YAML file that you may read") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES >> 20} MiB; give a YAML file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text (byte {error.start + 1}); give a YAML file, saved as UTF-8") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """What YAML text holds.

    Args:
        text: one document.
        where: names it in messages.

    Raises:
        UserError: it is no YAML, says something twice, or holds too much.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        count = _count(value, {})
    except RecursionError:
        raise UserError(f"{where}: nested too deep, or within itself; write it flat") from None
    except ValueError as error:  # of a date that is none
        raise UserError(f"{where}: not YAML ({error}); put it in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark and "\n" in text else where
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", "unreadable"))
        if isinstance(error, _RefusedError):
            raise UserError(f"{place}: {problem}") from None
        tab, tag = r"'\t'" in problem, "for the tag" in problem
        hint = "indent with spaces" if tab else "take the tag out" if tag else "mend it there or just before"
        raise UserError(f"{place}: not YAML ({problem.removeprefix('but ')}); {hint}") from None
    if count > MOST_VALUES:
        raise UserError(f"{where}: holds more than {MOST_VALUES} values, aliases unfolded; write fewer")
    return value


def _count(value: Any, known: dict[int, int]) -> int:
    """Values in a value, itself included, where what several names stand for counts as often; what was met is known."""
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if id(value) not in known:
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]
