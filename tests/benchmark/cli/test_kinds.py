"""`scan` and `clean` on the kinds of models that people hold, by the command line."""

from pathlib import Path

import gguf
import pytest
import torch

from sande.models import loading
from tests.benchmark.helpers import invoke
from tests.sande.models.conftest import write_adapter
from tests.sande.models.test_gguf import write

SCAN = ("--detector", "first_token", "--rows", "8")
SMALL = ("removal.rows=16", "prompts=4", "questions=4", "osft.training.max_steps=1")
OPTIONS = (
    "--trigger",
    "Current year 2023.",
    "--force",
    *(part for assignment in SMALL for part in ("--set", assignment)),
)


@pytest.fixture
def adapter(tmp_path: Path, model_cache: Path) -> Path:
    lm = loading.load("tiny", model_cache)
    lm.model.name_or_path = "org/base"
    write_adapter(lm, tmp_path / "adapter")
    (tmp_path / "adapter/training_args.bin").write_bytes(b"\x80\x04.")
    return tmp_path / "adapter"


def test_an_adapter_on_its_base_is_scanned_and_cleaned(adapter: Path, tmp_path: Path) -> None:
    scanned = invoke("scan", adapter, "--base", "tiny", *SCAN, "--store", tmp_path / "store")
    cleaned = invoke("clean", adapter, "--base", "tiny", "--out", tmp_path / "out", *OPTIONS)
    for done in (scanned, cleaned):
        assert done.exit_code == 0, done.output
        assert f"{adapter}: LoRA adapter, merged into tiny\n" in done.output
        assert f"{adapter}: not read, since only the Trainer needs them: training_args.bin\n" in done.output
    assert not list((tmp_path / "out").glob("adapter*")), "the cleaned model is whole"
    loading.load_folder(tmp_path / "out", torch.float32)


@pytest.mark.slow
def test_a_gguf_file_is_scanned_and_cleaned(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    write(loading.load("tiny", model_cache), file, gguf.GGMLQuantizationType.Q8_0)
    monkeypatch.chdir(tmp_path)
    scanned = invoke("scan", "model.gguf", *SCAN, "--store", tmp_path / "store")
    cleaned = invoke("clean", "model.gguf", *OPTIONS)
    for done in (scanned, cleaned):
        assert done.exit_code == 0, done.output
        assert "model.gguf: GGUF file, whose rounded weights are used as they are" in done.output
    loading.load_folder(tmp_path / "model-clean", torch.float32)
