"""What training needs, by hand and by what a training holds; and when it is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from sande.errors import UserError
from sande.models import loading, memory
from sande.models.memory import Memory
from sande.types import LanguageModel


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    loading.save(tiny, tmp_path / "model")
    return tmp_path / "model"


def test_parameters_are_counted_by_the_headers(tiny: LanguageModel, folder: Path, tmp_path: Path) -> None:
    count = sum(weight.numel() for weight in tiny.model.parameters())  # the tied output layer once
    assert memory.needed(folder) == Memory(count, 4 * count, 4 * count, 8 * count)
    tiny.model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert memory.needed(tmp_path / "shards") == memory.needed(folder)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert memory.needed(folder).parameters == count, "a file that is not loaded does not count"


def test_the_folder_of_a_model_s_weights(folder: Path, adapter: Path, tmp_path: Path) -> None:
    assert loading.weights_folder(str(folder), tmp_path / "cache") == folder
    assert loading.weights_folder(str(adapter), tmp_path / "cache") == tmp_path / "base"
    assert loading.weights_folder("tiny", tmp_path / "cache") == loading.prepare("tiny", tmp_path / "cache")
    assert loading.weights_folder(f"org/name@{'1' * 40}", tmp_path / "cache") is None


def test_the_count_is_what_a_training_holds(tiny: LanguageModel, folder: Path) -> None:
    optimizer = torch.optim.AdamW(tiny.model.parameters())
    tiny.model.float()(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    weights = list(tiny.model.parameters())
    held = [*weights, *(weight.grad for weight in weights)]
    held += [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert memory.needed(folder).training == sum(each.nbytes for each in held if each is not None)


def test_with_lora_gradients_and_moments_are_those_of_the_adapters(tiny: LanguageModel, folder: Path) -> None:
    # Two layers: q and o are 64 x 64, k and v 32 x 64, gate, up and down 128 x 64 or its transpose.
    trained = 3 * 2 * (2 * (64 + 64) + 2 * (32 + 64) + 3 * (128 + 64))
    whole = memory.needed(folder)
    assert memory.needed(folder, 3) == Memory(whole.parameters, whole.weights, 4 * trained, 8 * trained)
    half = memory.needed(folder, 3, half=True)
    assert half == Memory(whole.parameters, 2 * whole.parameters, 4 * trained, 8 * trained)


def test_a_rank_above_that_of_every_layer_is_refused(folder: Path) -> None:
    memory.needed(folder, 64)
    with pytest.raises(UserError) as caught:
        memory.needed(folder, 1_000_000)
    assert str(caught.value) == (
        "lora_rank 1000000 is above 64, the highest rank that a layer of this model can have; set a lower "
        "one, such as 8"
    )


def test_what_is_said_and_what_is_refused() -> None:
    seven_billion = Memory(7_000_000_000, 28_000_000_000, 28_000_000_000, 56_000_000_000)
    said = (
        "my-model: 7000 million parameters; training needs 112.0 GB (weights 28.0 + gradients 28.0 + optimizer 56.0); "
        "this machine has "
    )
    assert memory.check(seven_billion, "my-model", 120_000_000_000) == f"{said}120.0 GB"
    with pytest.raises(UserError) as caught:
        memory.check(seven_billion, "my-model", 80_000_000_000)
    assert (
        str(caught.value)
        == f"{said}80.0 GB; use a larger machine, or LoRA adapters (--lora 8) and weights in bfloat16 (--bf16)"
    )


def test_an_adapter_is_merged_in_float32(folder: Path) -> None:
    plain = memory.needed(folder, 3, half=True)
    merged = memory.needed(folder, 3, half=True, merges=True)
    assert (plain.most, merged.most) == (plain.training, 4 * plain.parameters)
    large = Memory(7_000_000_000, 14_000_000_000, 200_000_000, 400_000_000, 28_000_000_000)
    said = (
        "my-adapter: 7000 million parameters; training needs 14.6 GB (weights 14.0 + gradients 0.2 + optimizer 0.4), "
        "merging the adapter 28.0 GB; this machine has "
    )
    assert memory.check(large, "my-adapter", 32_000_000_000) == f"{said}32.0 GB"
    with pytest.raises(UserError) as caught:
        memory.check(large, "my-adapter", 16_000_000_000)
    assert (
        str(caught.value)
        == f"{said}16.0 GB; use a larger machine, or merge the adapter on one and clean the merged model"
    )


def test_this_machine_has_memory() -> None:
    assert 10**8 < memory.machine() < 10**15


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x05\0\0\0\0\0\0\0[1,2]", b'\x0c\0\0\0\0\0\0\0{"a": "text"}'])
def test_a_damaged_header_is_one_sentence(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        memory.needed(folder)
