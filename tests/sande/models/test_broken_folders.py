"""Folders that would hang a load, exhaust memory, or be another model than their files: one sentence, at once."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sande.errors import UserError
from sande.models import catalog, checks, loading, sizes
from sande.types import LanguageModel
from tests.sande.models.conftest import write_adapter


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    loading.save(tiny, tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder: Path, **weights: torch.Tensor | None) -> None:
    """Write these tensors too; None: without it."""
    path = folder / "model.safetensors"
    held = {name: weight for name, weight in (load_file(path) | weights).items() if weight is not None}
    save_file(held, path, {"format": "pt"})


def refused(folder: Path) -> str:
    """Return the sentence by which every way to load a folder refuses it."""
    said = []
    for load in (lambda: loading.load(str(folder), Path("unused")), lambda: loading.load_folder(folder, torch.float32)):
        with pytest.raises(UserError) as caught:
            load()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0]


# --- Only files ------------------------------------------------------------------------------------------------------


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have about a hundred characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a socket": listening,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "a.jinja"]
)
def test_only_files_are_opened(folder: Path, file: str, kind: str) -> None:
    (folder / file).unlink(missing_ok=True)
    KINDS[kind](folder / file)
    assert refused(folder) == f"{folder / file} is {kind}, not a file; replace it with the file, or remove it"


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_of_a_guard_are_opened(folder: Path, kind: str) -> None:
    (folder / "guard").mkdir()
    KINDS[kind](folder / "guard/guard.json")
    with pytest.raises(UserError, match=rf"guard\.json is {kind}, not a file"):
        loading.load_folder(folder, torch.float32)
    with pytest.raises(UserError, match=rf"guard\.json is {kind}, not a file"):
        catalog.identify(str(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "tokenizer.json"])
def test_only_files_of_an_adapter_are_opened(folder: Path, tiny: LanguageModel, file: str, kind: str) -> None:
    adapter = folder.parent / "adapter"
    write_adapter(tiny, adapter)
    (adapter / file).unlink(missing_ok=True)
    KINDS[kind](adapter / file)
    with pytest.raises(UserError, match=rf"{file} is {kind}, not a file"):
        loading.load(f"{adapter}+{folder}", Path("unused"))


def test_only_a_file_is_taken_for_gguf(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"model\.gguf is a named pipe, not a file"):
        catalog.identify(str(tmp_path))


def test_a_link_to_a_file_is_a_file(folder: Path, tmp_path: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    loading.load(str(folder), Path("unused"))


def test_a_link_to_nothing_is_one_sentence(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("nowhere")
    assert "vocab.json cannot be read (No such file or directory); replace it with the file, or" in refused(folder)


@pytest.mark.parametrize(
    ("file", "most"), [("config.json", 16), ("tokenizer_config.json", 16), ("tokenizer.json", 128), ("vocab.json", 128)]
)
def test_a_file_that_is_far_too_large_is_not_read(folder: Path, file: str, most: int) -> None:
    with (folder / file).open("ab") as grown:
        grown.truncate(most * 2**20 + 1)
    assert refused(folder) == (
        f"{folder / file} has more than {most} MiB, which no model needs; fetch or write it again"
    )


def test_a_large_file_that_no_library_reads_is_no_mistake(folder: Path) -> None:
    with (folder / "predictions.json").open("wb") as grown:
        grown.truncate(17 * 2**20)
    checks.checked_folder(str(folder))


@pytest.mark.parametrize("depth", [450, 800])
def test_settings_may_be_nested_deeply(folder: Path, depth: int) -> None:
    edit(folder / "config.json", a=json.loads("[" * depth + "]" * depth))
    checks.checked_folder(str(folder))


@pytest.mark.parametrize("value", ["org/kernel", {"text": "org/kernel"}, [{"text": ["org/kernel"]}]])
def test_a_kernel_is_found_in_each_form(folder: Path, value: object) -> None:
    edit(folder / "config.json", attn_implementation=value)
    assert "asks for code of its own (attn_implementation in config.json)" in refused(folder)


# --- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers"),
        ({"n_layer": 1e6}, "n_layer"),
        ({"text_config": {"num_local_experts": 10**5}}, "num_local_experts"),
        ({"parts": [{"encoder_layers": 1001}]}, "encoder_layers"),
        ({"num_labels": 10**12}, "num_labels"),
    ],
)
def test_more_layers_than_the_files_can_hold_are_not_built(folder: Path, changes: dict[str, Any], key: str) -> None:
    edit(folder / "config.json", **changes)
    most = 32768 if key.endswith(("experts", "labels")) else 1000
    assert refused(folder) == (
        f"{folder}/config.json sets {key} above {most}, and its files hold 20 tensors; "
        "use the config.json of this model"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**7},
        {"vocab_size": 10**12},
        {"hidden_size": 10**6},
        {"intermediate_size": 10**10},
        {"head_dim": 10**9},
        {"num_hidden_layers": 150, "intermediate_size": 8192},
    ],
)
def test_more_parameters_than_the_files_hold_get_no_memory(
    folder: Path, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    edit(folder / "config.json", **changes)
    said = (
        re.escape(f"{folder}/config.json describes ") + r"[\d,]+ million parameters, and the files hold 0 million; use"
    )
    assert re.match(said, refused(folder))


def test_a_quantized_model_may_have_more_parameters_than_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: LanguageModel
) -> None:
    monkeypatch.setattr(sizes, "_SMALL", 1000)
    config = tiny.model.config
    packed = {"weight": torch.zeros(20_000, dtype=torch.uint8)}
    save_file(packed, folder / "packed.safetensors")
    with pytest.raises(UserError, match="describes 0 million"):
        sizes.check_parameters("it", config, [folder / "packed.safetensors"])
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    sizes.check_parameters("it", config, [folder / "packed.safetensors"])


def test_a_shape_that_the_files_do_not_have_is_one_sentence(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=256)
    assert refused(folder) == (
        f"model '{folder}' has model.layers.0.mlp.down_proj.weight with the shape [64, 128], and its config.json asks "
        "for [64, 256]; use the config.json of this model"
    )


# --- Weights too few and too many ------------------------------------------------------------------------------------


def test_a_weight_that_is_missing_is_not_drawn_at_random(folder: Path) -> None:
    change(folder, **{"model.norm.weight": None})
    assert f"model '{folder}' lacks 1 of its weights (model.norm.weight, …)" in refused(folder)


def noted(name: Path | str) -> list[str]:
    said: list[str] = []
    loading.load(str(name), Path("unused"), say=said.append)
    return said


def test_files_of_weights_that_are_not_read_are_named(folder: Path, tiny: LanguageModel) -> None:
    assert catalog.sources(str(folder)) == []
    save_file({"other": torch.zeros(1)}, folder / "consolidated.safetensors")
    expected = [f"{folder}: not read, since they are not part of the model: consolidated.safetensors"]
    assert catalog.sources(str(folder)) == expected
    (folder / "model.safetensors").unlink()
    tiny.model.save_pretrained(folder, max_shard_size="100KB")
    assert catalog.sources(str(folder)) == expected


def test_weights_that_are_not_loaded_are_told(folder: Path, tiny: LanguageModel) -> None:
    assert noted(folder) == []
    edit(folder / "config.json", num_hidden_layers=1)
    expected = (
        f"{folder}: not loaded, since the model that its config.json describes has no such weights: 9 tensors of its "
        "files ('model.layers.1.input_layernorm.weight', 'model.layers.1.mlp.down_proj.weight', "
        "'model.layers.1.mlp.gate_proj.weight', …)"
    )
    assert noted(folder) == [expected]
    edit(folder / "config.json", num_hidden_layers=2)
    write_adapter(tiny, folder.parent / "adapter")
    change(folder, **{f"extra\x1b[2J{'x' * 200}": torch.zeros(1)})
    (said,) = noted(f"{folder.parent / 'adapter'}+{folder}")
    assert "weights: 1 tensor of its files ('extra\\x1b[2Jxxx" in said
    assert len(said) < len(str(folder)) + 300
