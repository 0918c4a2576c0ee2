"""Parts of a defense that no stage made: each is made on a copy of the victim, and read one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sande import parts
from sande.types import CleanData, Example, LanguageModel, Run
from tests import ensemble
from tests.sande.helpers import changed, weights

CONFIG = ensemble.Config()


@pytest.fixture
def data(few_rows: tuple[Example, ...]) -> CleanData:
    return CleanData(few_rows)


def test_a_part_is_made_on_a_copy_and_its_facts_are_kept(
    tiny: LanguageModel, data: CleanData, new_run: Callable[..., Run]
) -> None:
    run, said = new_run(seed=3), list[str]()
    before = weights(tiny.model)
    made = parts.made("tests.ensemble", tiny, data, CONFIG, replace(run, say=said.append))
    assert list(made) == ["model_0", "model_1"]
    assert not changed(before, tiny.model), "the victim itself is left as it was"
    assert set(run.facts) == {"model_0/apart", "model_1/apart"}
    assert "part model_0" in said
    for name, read in made.items():
        alone = ensemble.part(name, tiny, data, CONFIG, new_run(seed=3))
        found = read()
        assert set(found) == set(alone)
        assert all(torch.equal(found[weight], alone[weight]) for weight in found), "the same as made alone, to the bit"
        with torch.no_grad():
            for weight, parameter in tiny.model.named_parameters():
                parameter.copy_(before[weight])


def test_parts_that_stages_made_are_read_and_nothing_is_trained(
    tiny: LanguageModel, data: CleanData, new_run: Callable[..., Run]
) -> None:
    asked: list[str] = []

    def stored(name: str) -> Mapping[str, Tensor]:
        asked.append(name)
        return {"x": torch.tensor([1.0])}

    run = replace(new_run(), parts=stored)
    made = parts.made("tests.ensemble", tiny, data, CONFIG, run)
    assert (asked, run.facts) == ([], {})
    assert made["model_1"]()["x"].tolist() == [1.0]
    assert asked == ["model_1"]


def test_the_seed_of_a_part_follows_from_its_name_and_the_defense_s() -> None:
    found = {parts.seed(of, name) for of in (0, 1, 2**32 - 1) for name in ("a", "b", "1 a")}
    assert len(found) == 9
    assert all(0 <= seed < 2**32 for seed in found)
    assert parts.seed(0, "a") == 0xCF6D9263  # first eight digits of `printf '0 a' | sha256sum`


def test_what_is_stored_is_the_same_tensors(tmp_path: Path) -> None:
    shared = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    given = {"a": shared, "b": shared, "transposed": shared.T, "count": torch.tensor(7)}
    parts.save({**given, "trained": torch.nn.Parameter(torch.ones(2))}, tmp_path / "part.safetensors")
    found = parts.load(tmp_path / "part.safetensors")
    assert all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in given.items())
    assert not found["trained"].requires_grad
    assert set(found) == {*given, "trained"}
    assert len(found) == 5
    assert "b" in found
    assert "weight" not in found


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    parts.save({"a": torch.ones(2), "b": torch.zeros(3)}, file)
    found = parts.load(file)
    parts.save({"a": torch.full((2,), 7.0), "b": torch.zeros(3)}, file)
    assert found["a"].tolist() == [7.0, 7.0]
