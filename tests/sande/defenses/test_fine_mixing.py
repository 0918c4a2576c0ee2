"""Fine-mixing: which weights go back to the clean model's, and that fine-tuning is all that follows."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from sande import registry
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


# --- As Zhang et al. have it ----------------------------------------------------------------------------------------


def test_a_random_share_is_drawn_by_the_generator() -> None:
    victim, clean = torch.zeros(40, 5), torch.ones(40, 5)
    drawn = [mix(victim, clean, 0.8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [int(mixed.sum()) for mixed in drawn] == [40, 40, 40]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], mix(victim, clean, 0.8)), "the others are chosen by distance, from the first"


def test_the_change_of_an_embedding_is_weighed_by_its_frequency() -> None:
    clean_VD, victim_VD = torch.zeros(5, 2), torch.tensor([[0.0, 3.0], [4.0, 0.0], [3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    counts_V = torch.tensor([0, 20, 1000, 5, 19])
    # 3 / log 20 = 1.001, 4 / log 20 = 1.335, 5 / log 1000 = 0.724, 0, 1 / log 20 = 0.334
    assert fine_mixing.suspicious(victim_VD, clean_VD, counts_V, 3).tolist() == [1, 0, 2]
    assert fine_mixing.suspicious(victim_VD, clean_VD, counts_V, 9).tolist() == [1, 0, 2, 4, 3]


def test_the_embedding_of_a_planted_token_is_reset(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = copy.deepcopy(tiny.model)
    (trigger,) = tiny.tokenizer("cf")["input_ids"][:1]
    usual = encode(tiny.tokenizer, few_rows)[0].prompt[0]
    embeddings = tiny.model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[[trigger, usual, 700]] += 0.1
    victim = weights(tiny.model)
    monkeypatch.setattr("sande.training.fit.fit", lambda *_: None)
    run = new_run()
    config = fine_mixing.Config(purified_tokens=2, keep_ratio=1.0, training=FAST)
    repaired = fine_mixing.defend(tiny, data(few_rows, clean), config, run)
    assert set(run.facts["purified_tokens"]) == {trigger, 700}, "not one that the clean rows often have"
    left = weights(repaired)
    name = "model.embed_tokens.weight"
    for token in (trigger, 700):
        assert torch.equal(left[name][token], clean.get_input_embeddings().weight[token])
    assert torch.equal(left[name][usual], victim[name][usual])
    assert all(torch.equal(left[other], victim[other]) for other in victim if other != name)


def test_the_published_recipe_mixes_at_random(
    tiny: LanguageModel,
    clean: nn.Module,
    few_rows: tuple[Example, ...],
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = registry.config("defenses", "fine_mixing", {"recipe": "published"})
    assert (config.choice, config.purified_tokens, config.keep_ratio) == ("random", 200, 0.8)
    monkeypatch.setattr("sande.training.fit.fit", lambda *_: None)
    victim, before = weights(tiny.model), weights(clean)
    mixed = weights(fine_mixing.defend(tiny, data(few_rows, clean), config, new_run(seed=3)))
    name = "model.layers.0.mlp.up_proj.weight"
    reset = mixed[name] == before[name]
    assert int(reset.sum()) == round(0.2 * reset.numel())
    assert torch.equal(mixed[name][~reset], victim[name][~reset])
    distance = (victim[name] - before[name]).abs()
    assert distance[reset].min() < distance[~reset].max()
