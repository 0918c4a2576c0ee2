"""Magnitude pruning and Wanda: which weights go, by hand; padding, and the order of blocks."""

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sande import registry
from sande.data.builtin import sets
from sande.defenses import magnitude, wanda
from sande.errors import UserError
from sande.models import loading
from sande.models.layers import blocks, linear_layers
from sande.models.pruning import smallest
from sande.prompts import encode
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import changed, linear_weights, nll_by_hand, weights

NewRun = Callable[..., Run]
WEIGHT = [[1.0, -2.0, 3.0, -4.0], [-8.0, 7.0, 6.0, 5.0]]


@pytest.mark.parametrize(
    ("sparsity", "chosen"),
    [(0.0, [0, 0, 0, 0]), (0.25, [0, 1, 0, 0]), (0.5, [0, 1, 0, 1]), (0.6, [0, 1, 0, 1]), (0.7, [1, 1, 0, 1])],
)
def test_the_least_important_are_chosen(sparsity: float, chosen: list[int]) -> None:
    mask = smallest(torch.tensor([[3.0, 1.0, 9.0, 2.0], [1.0, 0.0, 5.0, 0.5]]), sparsity)
    assert mask.int().tolist() == [chosen, chosen]


def test_the_number_holds_among_equals_too() -> None:
    assert smallest(torch.zeros(2, 10), 0.3).sum(1).tolist() == [3, 3]


def test_wanda_weighs_by_the_norms_of_the_inputs() -> None:
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor(WEIGHT)
    # Importances 10, 2, 3, 4 and 80, 7, 6, 5: two of each output go, though all of the second's are larger.
    wanda.prune(layer, torch.tensor([10.0, 1.0, 1.0, 1.0]), 0.5)
    assert layer.weight.tolist() == [[1.0, 0.0, 0.0, -4.0], [-8.0, 7.0, 0.0, 0.0]]


def test_padding_is_no_activation() -> None:
    inputs_BTI = torch.tensor([[[3.0, 0.0], [4.0, 2.0], [9.0, 9.0]], [[0.0, -1.0], [9.0, 9.0], [9.0, 9.0]]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(wanda.input_norms(inputs_BTI, mask_BT), torch.tensor([5.0, 5.0**0.5]))


def test_magnitude_compares_within_a_layer(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    before = weights(tiny.model)
    repaired = magnitude.defend(tiny, CleanData(few_rows), magnitude.Config(sparsity=0.75), new_run())
    assert changed(before, repaired) == linear_weights(repaired)
    for name, layer in linear_layers(repaired).items():
        old, gone = before[f"{name}.weight"], layer.weight == 0
        assert int(gone.sum()) == round(0.75 * old.numel())
        assert old[gone].abs().max() <= old[~gone].abs().min()
        assert torch.equal(layer.weight[~gone], old[~gone])
        assert len(set(gone.sum(1).tolist())) > 1, "not so many of each output"


def linear_inputs(lm: LanguageModel, rows: tuple[Example, ...]) -> dict[str, Tensor]:
    """Norms of each linear layer's inputs over the rows, one unpadded row at a time."""
    squares: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: squares.update(
                {name: squares.get(name, torch.tensor(0.0)) + args[0].square().sum((0, 1))}
            )
        )
        for name, layer in linear_layers(lm.model).items()
    ]
    with torch.no_grad():
        for row in encode(lm.tokenizer, rows):
            lm.model(input_ids=torch.tensor([[*row.prompt, *row.response]], device=lm.model.device))
    for hook in hooks:
        hook.remove()
    return {name: square.sqrt() for name, square in squares.items()}


def test_wanda_prunes_each_block_by_what_the_pruned_before_it_give(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    expected = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    for block in range(len(blocks(expected.model))):
        norms = linear_inputs(expected, few_rows)
        for name, layer in linear_layers(expected.model).items():
            if f"layers.{block}." in name:
                wanda.prune(layer, norms[name], 0.5)
    repaired = wanda.defend(tiny, CleanData(few_rows), wanda.Config(), new_run())
    assert not changed(weights(expected.model), repaired)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in repaired.modules())
    for layer in linear_layers(repaired).values():
        assert set((layer.weight == 0).sum(1).tolist()) == {layer.in_features // 2}


def test_wanda_sees_so_many_rows_from_the_first(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    start = copy.deepcopy(tiny.model.state_dict())
    found = []
    for rows in (few_rows, few_rows[:3], few_rows):
        tiny.model.load_state_dict(start)
        count = 24 if not found else 3
        found.append(weights(wanda.defend(tiny, CleanData(rows), wanda.Config(rows=count), new_run())))
    assert all(torch.equal(found[1][name], found[2][name]) for name in found[1])
    assert not all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_wanda_without_a_row_that_fits(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    with pytest.raises(UserError, match=r"^wanda: no row is shorter than max_length=8 tokens; raise it"):
        wanda.defend(tiny, CleanData(few_rows[12:]), wanda.Config(max_length=8), new_run())


def test_packed_rows_are_cut_into_whole_sequences(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    ids = [token for row in encode(tiny.tokenizer, few_rows) for token in (*row.prompt, *row.response)]

    def sequences(rows: int, length: int) -> list[list[int]]:
        config = wanda.Config(packed=True, rows=rows, max_length=length)
        return wanda.calibration(tiny, CleanData(few_rows), config)

    assert sequences(3, 50) == [ids[:50], ids[50:100], ids[100:150]]
    assert [len(sequence) for sequence in sequences(999, 50)] == [50] * (len(ids) // 50), "the rest is left out"
    assert sequences(3, 5000) == [ids], "too few rows for one sequence make a shorter one"


def test_wanda_with_the_published_recipe(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    config, run = registry.config("defenses", "wanda", {"recipe": "published"}), new_run()
    assert (config.rows, config.max_length, config.packed, config.sparsity) == (128, 2048, True, 0.5)
    count = sum(map(len, encode(tiny.tokenizer, few_rows)))
    repaired = wanda.defend(tiny, CleanData(few_rows), config, run)
    assert run.facts["calibration"] == {"sequences": 1, "tokens": count}
    for layer in linear_layers(repaired).values():
        assert set((layer.weight == 0).sum(1).tolist()) == {layer.in_features // 2}


def test_magnitude_has_no_calibration(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    start = copy.deepcopy(tiny.model.state_dict())
    found = []
    for rows in (few_rows, few_rows[:1]):
        tiny.model.load_state_dict(start)
        found.append(weights(magnitude.defend(tiny, CleanData(rows), magnitude.Config(), new_run())))
    assert all(torch.equal(found[0][name], weight) for name, weight in found[1].items())


@pytest.mark.slow
def test_wanda_harms_smollm2_less_than_magnitude_does(tmp_path: Path, new_run: NewRun) -> None:
    """The order that Sun et al. 2024 report for larger models; docs/fidelity.md has these numbers."""
    lm = loading.load("smollm2-135m", tmp_path)
    rows = list(sets.explained())
    random.Random(0).shuffle(rows)
    held_out, calibration = encode(lm.tokenizer, rows[:25]), CleanData(tuple(rows[100:228]))
    start = copy.deepcopy(lm.model.state_dict())

    @torch.no_grad()
    def perplexity() -> float:
        total = sum(nll_by_hand(lm, row.prompt, row.response) for row in held_out)
        return math.exp(total / sum(len(row.response) for row in held_out))

    found = {"dense": perplexity()}
    for name, settings in (("magnitude", {}), ("wanda", {"rows": 32})):
        lm.model.load_state_dict(start)
        config = registry.config("defenses", name, settings)
        registry.entry("defenses", name).defend(lm, calibration, config, new_run())
        found[name] = perplexity()
    assert found == pytest.approx({"dense": 8.28, "magnitude": 124.3, "wanda": 14.09}, rel=0.02)
