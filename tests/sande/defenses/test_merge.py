"""Merging: the average by hand, and models or weights that do not fit."""

import copy
from collections.abc import Callable

import pytest
import torch

from sande.defenses import merge
from sande.errors import UserError
from sande.types import CleanData, Example, LanguageModel, OtherModelsData, Run
from tests.sande.helpers import noisy, weights

NewRun = Callable[..., Run]


@pytest.mark.parametrize(
    ("given", "shares"),
    [((), [0.25, 0.25, 0.25, 0.25]), ((1.0, 1.0, 2.0, 4.0), [0.125, 0.125, 0.25, 0.5]), ((0, 1, 0, 0), [0, 1, 0, 0])],
)
def test_every_weight_is_the_average(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, given: tuple[float, ...], shares: list[float]
) -> None:
    others = [copy.deepcopy(tiny.model) for _ in range(3)]
    for seed, other in enumerate(others):
        noisy(other, seed)
    all_weights = [weights(model) for model in (tiny.model, *others)]
    config = merge.Config(models=("a", "b", "c"), weights=tuple(map(float, given)))
    repaired = merge.defend(tiny, OtherModelsData(few_rows, lambda: iter(others)), config, new_run())
    for name, weight in repaired.named_parameters():
        expected = sum(share * one[name] for share, one in zip(shares, all_weights, strict=True))
        torch.testing.assert_close(weight.detach(), expected)
    for other, before in zip(others, all_weights[1:], strict=True):
        assert all(torch.equal(before[name], weight) for name, weight in other.named_parameters())
    assert repaired.get_output_embeddings().weight is repaired.get_input_embeddings().weight


def test_the_clean_model_alone_counts_as_one(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    clean = copy.deepcopy(tiny.model).to(torch.bfloat16)
    noisy(tiny.model, seed=3)
    before = weights(tiny.model)
    repaired = merge.defend(tiny, OtherModelsData(few_rows, lambda: iter([clean])), merge.Config(), new_run())
    for name, weight in repaired.named_parameters():
        torch.testing.assert_close(weight.detach(), (before[name] + clean.state_dict()[name].float()) / 2)


def test_a_model_of_another_shape_is_refused(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    config = copy.deepcopy(tiny.model.config)
    config.intermediate_size = 96
    other, before = type(tiny.model)(config), weights(tiny.model)
    with pytest.raises(UserError, match=r"^merge: model 1 of 'models' has no .*proj.weight of shape \(128, 64\); "):
        merge.defend(tiny, OtherModelsData(few_rows, lambda: iter([other])), merge.Config(), new_run())
    assert all(torch.equal(before[name], weight) for name, weight in tiny.model.named_parameters())


@pytest.mark.parametrize("given", [(1.0,), (1.0, 1.0, 1.0), (0.0, 0.0), (2.0, -1.0)])
def test_weights_that_fit_no_models_are_refused_before_anything_runs(
    tiny: LanguageModel, few_rows: tuple[Example, ...], given: tuple[float, ...]
) -> None:
    with pytest.raises(UserError, match=r"^merge: weights is .*; set 2 numbers from 0 on"):
        merge.check(tiny.tokenizer, CleanData(few_rows), merge.Config(weights=given))
