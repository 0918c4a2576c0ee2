"""Grids written to a temporary folder, and an empty store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.store.local import LocalStore
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
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")
