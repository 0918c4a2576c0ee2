"""Fine-mixing: which weights go back to the clean model's, and that fine-tuning is all that follows."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from sande.config import Training
from sande.defenses import fine_mixing, sft
from sande.defenses.fine_mixing import mix
from sande.prompts import Row, encode
from sande.types import CleanData, CleanModelData, Example, LanguageModel, Run
from tests.sande.helpers import FAST, noisy, weights

NewRun = Callable[..., Run]
VICTIM = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
CLEAN = torch.tensor([[1.0, 2.5, 3.0], [0.0, 5.1, 9.0]])  # at a distance of 0, 0.5, 0, 4, 0.1 and 3


@pytest.mark.parametrize(
    ("keep_ratio", "mixed"),
    [
        (1.0, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        (0.8, [[1.0, 2.0, 3.0], [0.0, 5.0, 6.0]]),  # 4.8 weights stay, rounded to 5
        (0.7, [[1.0, 2.0, 3.0], [0.0, 5.0, 9.0]]),  # 4.2, rounded to 4
        (0.5, [[1.0, 2.5, 3.0], [0.0, 5.0, 9.0]]),
        (0.0, [[1.0, 2.5, 3.0], [0.0, 5.1, 9.0]]),
    ],
)
def test_the_furthest_weights_are_the_clean_ones(keep_ratio: float, mixed: list[list[float]]) -> None:
    assert torch.equal(mix(VICTIM, CLEAN, keep_ratio), torch.tensor(mixed))


def test_the_distance_has_no_sign() -> None:
    assert torch.equal(mix(-VICTIM, -CLEAN, 0.5), -mix(VICTIM, CLEAN, 0.5))


def test_the_number_of_weights_holds_among_equals_too() -> None:
    mixed = mix(torch.zeros(10), torch.ones(10), 0.7)
    assert mixed.sum() == 3
    assert set(mixed.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)])
def test_every_shape_is_mixed_as_one_row_of_numbers(shape: tuple[int, ...]) -> None:
    victim, clean = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    mixed = mix(victim, clean, 0.6)
    assert mixed.shape == shape
    assert torch.equal(mixed.flatten(), mix(victim.flatten(), clean.flatten(), 0.6))


def test_a_transposed_tensor_is_mixed_where_its_weights_are() -> None:
    assert torch.equal(mix(VICTIM.T, CLEAN.T, 0.5), mix(VICTIM, CLEAN, 0.5).T)


def test_neither_tensor_is_touched() -> None:
    victim, clean = VICTIM.clone(), CLEAN.clone()
    mix(victim, clean, 0.0).add_(1)
    assert torch.equal(victim, VICTIM)
    assert torch.equal(clean, CLEAN)


@pytest.fixture
def clean(tiny: LanguageModel) -> nn.Module:
    """The model before the attack; the fixture `tiny` becomes the victim."""
    before = copy.deepcopy(tiny.model)
    noisy(tiny.model, seed=1)
    return before


def data(rows: tuple[Example, ...], clean: nn.Module) -> CleanModelData:
    return CleanModelData(rows, lambda: clean)


def test_the_mixed_model_is_what_is_fine_tuned(
    tiny: LanguageModel,
    clean: nn.Module,
    few_rows: tuple[Example, ...],
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def fit(lm: LanguageModel, rows: Sequence[Row], settings: Training, run: Run, stage: str) -> None:
        seen.append((weights(lm.model), rows, settings, stage))

    monkeypatch.setattr("sande.training.fit.fit", fit)
    config = fine_mixing.Config(keep_ratio=0.75, training=FAST)
    victim, before = weights(tiny.model), weights(clean)
    assert fine_mixing.defend(tiny, data(few_rows, clean), config, new_run()) is tiny.model
    ((mixed, *rest),) = seen
    assert rest == [encode(tiny.tokenizer, few_rows), FAST, "fine_mixing"]
    for name, weight in mixed.items():
        distance = (victim[name] - before[name]).abs()
        reset = weight == before[name]
        assert int(reset.sum()) == weight.numel() // 4, "every tensor gives up the same share"
        assert torch.equal(weight[~reset], victim[name][~reset])
        assert distance[reset].min() >= distance[~reset].max()
    assert all(torch.equal(before[name], weight) for name, weight in weights(clean).items())
    assert tiny.model.get_output_embeddings().weight is tiny.model.get_input_embeddings().weight


@pytest.mark.parametrize(("keep_ratio", "start"), [(1.0, "victim"), (0.0, "clean")])
def test_at_its_ends_it_is_fine_tuning_of_one_model(
    tiny: LanguageModel, clean: nn.Module, few_rows: tuple[Example, ...], new_run: NewRun, keep_ratio: float, start: str
) -> None:
    other = dataclasses.replace(tiny, model=copy.deepcopy({"victim": tiny.model, "clean": clean}[start]))
    expected = weights(sft.defend(other, CleanData(few_rows), sft.Config(training=FAST), new_run()))
    config = fine_mixing.Config(keep_ratio=keep_ratio, training=FAST)
    found = weights(fine_mixing.defend(tiny, data(few_rows, clean), config, new_run()))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_clean_model_in_half_precision_does_as_well(
    tiny: LanguageModel, clean: nn.Module, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    config = fine_mixing.Config(keep_ratio=0.5, training=FAST)
    repaired = fine_mixing.defend(tiny, data(few_rows, clean.to(torch.bfloat16)), config, new_run())
    assert {parameter.dtype for parameter in repaired.parameters()} == {torch.float32}
