"""Grids written to a temporary folder, and an empty store."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.io import plots
from benchmark.store.local import LocalStore
from sande import registry
from tests import ensemble as defense
from tests.benchmark.helpers import SMALL


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDE_DATA_DIR", raising=False)


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grid: the small cell with changes at the top."""

    def write(name: str = "small", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
        return path

    return write


@pytest.fixture
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rasterised, which takes longer than everything else of a report."""

    def save(figure: object, folder: Path, name: str) -> None:
        for suffix in ("png", "svg"):
            (folder / f"{name}.{suffix}").write_text("picture")

    monkeypatch.setattr(plots, "save", save)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The defense of `tests.ensemble`, which has parts, as if its package were installed; its name."""

    def forget() -> None:
        for found in (registry.names, registry.module_of, registry._plugins):
            found.cache_clear()

    monkeypatch.syspath_prepend(str(defense.installed(tmp_path / "site")))
    forget()
    yield "ensemble"
    forget()
