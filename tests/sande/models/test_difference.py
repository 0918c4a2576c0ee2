"""How many stored weights two models have alike."""

from pathlib import Path

import torch

from sande.models import difference, loading
from sande.types import LanguageModel


def test_a_model_has_all_weights_of_itself(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.save(tiny, tmp_path / "a")
    assert difference.unchanged(tmp_path / "a", tmp_path / "a") == 1.0


def test_weights_that_moved_by_less_than_is_stored_count_as_the_same(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.save(tiny, tmp_path / "before")
    total = sum(weight.numel() for weight in tiny.model.parameters())  # one that is tied is stored once
    first = next(weight for weight in tiny.model.parameters() if weight.dim() == 2)
    tiny.model.to(torch.float32)
    with torch.no_grad():
        for weight in tiny.model.parameters():
            weight.mul_(1 + 2**-12)
        first[1:4] *= 2  # the first row is that of padding, zeros
    loading.save(tiny, tmp_path / "after")
    assert difference.unchanged(tmp_path / "before", tmp_path / "after") == 1 - 3 * first.shape[1] / total


def test_weights_in_several_files_are_found(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.save(tiny, tmp_path / "whole")
    tiny.model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert difference.unchanged(tmp_path / "whole", tmp_path / "shards") == 1.0
    assert difference.unchanged(tmp_path / "shards", tmp_path / "whole") == 1.0
