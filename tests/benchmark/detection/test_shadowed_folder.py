"""Folders that are called like a built-in model: no command takes one for the other."""

from pathlib import Path

import pytest

from sande.errors import UserError
from sande.models import catalog, loading
from sande.types import LanguageModel
from tests.benchmark.helpers import mistake


@pytest.mark.parametrize("command", ["scan", "clean"])
def test_a_name_that_means_two_models_is_refused(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    loading.save(tiny, Path("tiny"))
    line = mistake(command, "tiny", "--out", "out", *(("--store", "store") if command == "scan" else ()))
    assert (
        "'tiny' is a built-in model and a folder here; use ./tiny for the folder, or run elsewhere for the built-in one"
        in line
    )
    assert catalog.identify("./tiny").startswith("folder:")


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize("name", ["tiny", "smollm2-135m", "llama2-7b"])
def test_a_load_refuses_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_text("{}")
    with pytest.raises(UserError, match=f"'{name}' is a built-in model and a folder here; use ./{name}"):
        loading.load(name, tmp_path / "cache")


def test_a_folder_without_a_model_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert catalog.identify("tiny").startswith("tiny:")
