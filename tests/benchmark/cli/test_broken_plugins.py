"""Plug-ins that are broken in any way: a sentence that names them, and nothing else of the suite stops."""

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sande import plugins, registry
from sande.config import configuration, setting
from sande.errors import UserError
from tests.benchmark.helpers import SMALL, GridFile, invoke

NAME = "own_and_odd"


@configuration
class Config:
    """Settings."""

    number: int = setting(3, "a number", "made up")


def works(*arguments: object) -> tuple[str, ...]:
    return ("one",)


def ends(*arguments: object) -> None:
    sys.exit(0)


def fails(*arguments: object) -> None:
    raise RuntimeError("odd\nand more")


@configuration
class Needy:
    """Settings without a default."""

    number: int


class Plain:
    number = 3


ODD: tuple[Any, ...] = (None, 3, "text", [], {}, Plain, Plain(), object(), ends, fails, Needy, Config(), [1], ("a", 2))


def module(kind: str, **changes: Any) -> types.ModuleType:
    made = types.ModuleType(f"{NAME}_module", "A method.")
    vars(made).update(dict.fromkeys(plugins.FUNCTIONS[kind], works) | {"Config": Config} | changes)
    return made


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, types.ModuleType | str], None]]:
    """Makes a module, or a file's text, the plug-in of a kind."""

    def forget() -> None:
        for one in (registry.names, registry.module_of, registry._plugins, registry._declared, plugins.load):
            one.cache_clear()

    def put(kind: str, made: types.ModuleType | str) -> None:
        forget()
        dotted = made if isinstance(made, str) else made.__name__
        if not isinstance(made, str):
            monkeypatch.setitem(sys.modules, dotted, made)
        point = importlib.metadata.EntryPoint(NAME, dotted, f"sande.{kind}")
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if point.group == group else [])

    yield put
    monkeypatch.undo()
    forget()


CASES = [
    (kind, name, value)
    for kind, functions in plugins.FUNCTIONS.items()
    for name in ("Config", *functions, *(["MEASURES"] if kind == "metrics" else []))
    for value in ODD
]


@pytest.mark.parametrize("kind", plugins.FUNCTIONS)
def test_a_whole_plugin_is_taken(kind: str, install: Callable[..., None]) -> None:
    install(kind, module(kind))
    assert registry.entry(kind, NAME).Config is Config
    assert NAME in registry.usable(kind)


def test_any_odd_part_of_a_plugin_is_refused_in_a_sentence(install: Callable[..., None]) -> None:
    for kind, name, value in CASES:
        taken = callable(value) and name not in ("Config", "MEASURES", "names", "reads")
        install(kind, module(kind, **{name: value}))
        if taken:
            registry.entry(kind, NAME)
            continue
        with pytest.raises(UserError, match=rf"^{kind[:-1]} '{NAME}': its module {NAME}_module "):
            registry.entry(kind, NAME)


@pytest.mark.parametrize(
    "body", ["import sys\nsys.exit(0)", "raise KeyError(1)", "1 +", "import absent_module", "exit()"]
)
def test_a_module_that_cannot_be_imported_stops_nothing_else(
    body: str, install: Callable[..., None], grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_by_hand.py").write_text(body)
    for kind in plugins.FUNCTIONS:
        install(kind, "broken_by_hand")
        listed = invoke("list", kind)
        assert listed.exit_code == 0, listed.output
        (line,) = [line for line in listed.output.splitlines() if line.startswith(NAME)]
        assert "cannot be used:" in line
        with pytest.warns(UserWarning, match="left out"):
            registry.usable(kind)
        shown = invoke("show", kind, NAME)
        assert (shown.exit_code, len(shown.stderr.splitlines())) == (2, 1)
        planned = invoke("plan", grid_file(**SMALL), "--store", tmp_path / "store")
        assert planned.exit_code == 0, planned.output
