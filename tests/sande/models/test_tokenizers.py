"""Tokenizers that cannot write rows for a model, in one sentence each; and ids that a model has no embedding for."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sande.errors import UserError
from sande.models import loading, tokenizers
from sande.types import LanguageModel


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    loading.save(tiny, tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def said(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loading.load(str(folder), Path("unused"))
    assert "\n" not in str(caught.value)
    assert "sande-model-" not in str(caught.value), "the temporary folder is nobody's concern"
    return str(caught.value)


def test_without_eos_is_one_sentence(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    assert said(folder) == (f"tokenizer of '{folder}' has no EOS token; set eos_token in its tokenizer_config.json")


def test_without_padding_eos_pads(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert loading.load(str(folder), Path("unused")).tokenizer.pad_token == "<|end|>"


PANICS: list[dict[str, Any]] = [
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
]
ERRORS: list[dict[str, Any]] = [
    {"model": {"type": "WordLevel", "vocab": {"a": 0, "<|end|>": 1}, "unk_token": "zz"}},
    {"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}},
    {"model": 3},
]


@pytest.mark.parametrize("change", PANICS + ERRORS, ids=lambda change: str(next(iter(change.values())))[:40])
def test_a_library_that_fails_is_one_sentence(
    folder: Path, change: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "tokenizer.json", **change)
    assert said(folder).startswith(f"tokenizer of '{folder}' cannot be loaded (")
    assert "panicked" not in capfd.readouterr().err


def test_of_what_is_written_meanwhile_only_a_panic_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with tokenizers._panics_unreported():
        os.write(2, b"a warning\n")
    with tokenizers._panics_unreported():
        os.write(2, b"thread '<unnamed>' panicked at mod.rs:1\nstack backtrace\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a warning\nafterwards\n"


@pytest.mark.parametrize("change", ["{", "[]", ""])
def test_a_damaged_file_is_one_sentence(folder: Path, change: str) -> None:
    (folder / "tokenizer.json").write_text(change)
    assert said(folder).startswith(f"tokenizer of '{folder}' cannot be loaded (")


# --- Ids beyond the embeddings --------------------------------------------------------------------------------------


def test_ids_of_text_beyond_the_embeddings_are_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["beyond"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert said(folder) == (
        f"the tokenizer of '{folder}' has ids up to 5000, the model 768 token embeddings; use the tokenizer that the "
        "model was trained with"
    )


def test_an_eos_token_beyond_the_embeddings_is_refused(tiny: LanguageModel, folder: Path) -> None:
    tiny.tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    tiny.tokenizer.save_pretrained(folder)
    assert "has ids up to 768, the model 768 token embeddings" in said(folder)


def test_added_tokens_beyond_the_embeddings_are_left_out(tiny: LanguageModel, folder: Path, tmp_path: Path) -> None:
    tiny.tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})  # as with Gemma's text models
    tiny.tokenizer.save_pretrained(folder)
    assert tiny.tokenizer.convert_tokens_to_ids("<image>") == 768
    loaded = loading.load(str(folder), Path("unused"))
    assert len(loaded.tokenizer) == 768
    ids = loaded.tokenizer("See <image>.")["input_ids"]
    assert max(ids) < 768
    assert loaded.tokenizer.decode(ids) == "See <image>."
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor([ids]))
    loading.save(loaded, tmp_path / "again")
    assert loading.load(str(tmp_path / "again"), Path("unused")).tokenizer("See <image>.")["input_ids"] == ids
