"""What all tests share: the tiny model, a run to train in, and no way to the network or to the developer's own data."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sande.data.builtin import sets
from sande.models import loading
from sande.types import Example, LanguageModel, Run

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which nothing above does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def _out_of_sight() -> None:
    """Take what is imported by now out of the garbage collector's sight.

    accelerate has it look through everything before each training: that took 0.4 s, and a training of two steps 0.05 s.
    Before each test, as libraries import their parts when they are first used.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDE_DATA_DIR", raising=False)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which `tiny` is built once for the whole session."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def _loaded(model_cache: Path) -> LanguageModel:
    return loading.load("tiny", model_cache)


@pytest.fixture
def tiny(_loaded: LanguageModel) -> LanguageModel:
    """The random two-layer Llama with float32 weights, fresh for every test: a copy, ten times as fast as loading."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes runs, by default with seed 0 and in silence."""

    def make(seed: int = 0, say: Callable[[str], None] = lambda line: None) -> Run:
        return Run(seed=seed, scratch=str(tmp_path / "trainer"), say=say)

    return make


@pytest.fixture(scope="session")
def few_rows() -> tuple[Example, ...]:
    """24 built-in rows, half of them with a system prompt."""
    return (*sets.short()[:12], *sets.explained()[:12])
