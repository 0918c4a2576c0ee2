"""Weights in a model's files that are not part of the model: scan and clean say so, on the terminal and in reports."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sande.models import loading
from sande.types import LanguageModel
from tests.benchmark.clean.test_clean import options
from tests.benchmark.helpers import invoke

EXTRA = "<b>mtp</b>.0.weight"


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    """The tiny model, with a tensor that no Llama has."""
    loading.save(tiny, tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    weights = load_file(path)
    save_file(weights | {EXTRA: weights["model.norm.weight"].clone()}, path, {"format": "pt"})
    return tmp_path / "m"


def test_scan_and_clean_say_which_weights_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    note = (
        f"{folder}: not loaded, since the model that its config.json describes has no such weights: 1 tensor of its "
        f"files ('{EXTRA}')"
    )
    scanned, cleaned = tmp_path / "scanned", tmp_path / "cleaned"
    quick = ("--detector", "first_token", "--rows", 20, "--set", "prompts=4", "--set", "own_prompts=1")
    done = invoke("scan", folder, *quick, "--out", scanned, "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(note) == 1
    assert json.loads((scanned / "scan.json").read_text())["notes"] == [note]
    shown = r"files ('\<b>mtp\</b>.0.weight')"
    assert shown in (scanned / "scan.md").read_text()
    assert shown in done.stdout

    done = invoke("clean", folder, "--trigger", "Current year 2023.", "--force", *options(cleaned))
    assert done.exit_code == 0, done.output
    assert done.stdout.count(note) == 1
    assert json.loads((cleaned / "report.json").read_text())["notes"] == [note]
    for page in ("report.md", "README.md"):
        assert shown in (cleaned / page).read_text()
    assert "&lt;b&gt;mtp&lt;/b&gt;.0.weight" in (cleaned / "report.html").read_text()
    assert EXTRA not in load_file(cleaned / "model.safetensors")
