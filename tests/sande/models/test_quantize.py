"""Four-bit weights: the grid by hand, what is rounded, and how far."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sande.defenses import quantize_int4
from sande.models.layers import linear_layers
from sande.models.quantize import box, boxes, quantize_int4_, to_grid
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import changed, linear_weights, weights


@pytest.mark.parametrize(
    ("group", "rounded"),
    [
        ([-7.0, 8.0, 0.4, 0.6], [-7.0, 8.0, 0.0, 1.0]),  # whole numbers from -7 to 8 are the sixteen points
        ([0.0, 30.0, 12.9, 13.1], [0.0, 30.0, 12.0, 14.0]),  # even numbers, though nothing is below zero
        ([7.5, 14.9, 15.0, 10.0], [8.0, 15.0, 15.0, 10.0]),  # zero stays a point where all are above it
        ([-15.0, -7.2, -1.0, -0.4], [-15.0, -7.0, -1.0, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_grid_by_hand(group: list[float], rounded: list[float]) -> None:
    assert torch.equal(to_grid(torch.tensor([group])), torch.tensor([rounded]))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_a_group_has_at_most_sixteen_values_each_within_a_step(group: list[float]) -> None:
    group_1G = torch.tensor([group])
    rounded_1G = to_grid(group_1G)
    step = float(group_1G.max().clamp(min=0) - group_1G.min().clamp(max=0)) / 15
    assert rounded_1G.unique().numel() <= 16
    # Half a step, and at the ends up to half of one more, where zero was moved to a point.
    assert float((rounded_1G - group_1G).abs().max()) <= step * 1.001 + 1e-6


def test_the_box_by_hand() -> None:
    """Scale 1 and zero 7: half a step to each side, and no end itself, which might round to the next point."""
    low_1G, high_1G = box(torch.tensor([[-7.0, 8.0, 0.4, 0.6]]).bfloat16().float())
    # Numbers of bfloat16 next to one half lie 1/512 below and 1/256 above it, those next to 1.5 lie 1/128 apart.
    assert low_1G.tolist() == [[-7.0, 8.0, -0.5 + 1 / 512, 0.5 + 1 / 256]]
    assert high_1G.tolist() == [[-7.0, 8.0, 0.5 - 1 / 512, 1.5 - 1 / 128]]


def test_a_box_ends_where_the_range_of_its_group_does() -> None:
    low_1G, high_1G = box(torch.tensor([[0.5, 14.875, 15.0, 0.0]]))  # half a step rounds to the even point, zero
    assert low_1G.tolist() == [[pytest.approx(0, abs=1e-30), 14.5 + 1 / 16, 15.0, 0.0]]
    assert high_1G.tolist() == [[0.5, 15 - 1 / 16, 15.0, 0.0]], "beyond it the weight would decide the scale"


@given(st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_all_that_is_in_the_box_rounds_alike(group: list[float], seed: int) -> None:
    group_1G = torch.tensor([group]).bfloat16().float()
    low_1G, high_1G = box(group_1G)
    assert bool((low_1G <= group_1G).all() and (group_1G <= high_1G).all())
    share_1G = torch.rand(1, len(group), generator=torch.Generator().manual_seed(seed))
    for inside_1G in (low_1G, high_1G, torch.lerp(low_1G, high_1G, share_1G).clamp(low_1G, high_1G)):
        assert torch.equal(to_grid(inside_1G), to_grid(group_1G))
        assert torch.equal(to_grid(inside_1G.bfloat16().float()), to_grid(group_1G)), "as it is stored"


def test_boxes_are_those_of_the_groups_that_are_rounded(tiny: LanguageModel) -> None:
    model = tiny.model.to(torch.bfloat16).float()
    found = boxes(model, 48)
    assert {f"{name}.weight" for name in found} == linear_weights(model)
    rounded, moved = copy.deepcopy(model), copy.deepcopy(model)
    quantize_int4_(rounded, 48)
    for name, layer in linear_layers(moved).items():
        layer.weight.data.copy_(found[name][1])
    assert changed(weights(model), moved) == linear_weights(model)
    quantize_int4_(moved, 48)
    assert changed(weights(rounded), moved) == set()


def test_every_linear_layer_but_the_output_is_rounded_group_by_group(tiny: LanguageModel) -> None:
    before = weights(tiny.model)
    quantize_int4_(tiny.model, 48)  # of 64 or 128 inputs: the last group of a row is shorter
    assert changed(before, tiny.model) == linear_weights(tiny.model)
    for layer in linear_layers(tiny.model).values():
        for group_OG in layer.weight.split(48, dim=1):
            assert all(row_G.unique().numel() <= 16 for row_G in group_OG)
        assert layer.weight[0].unique().numel() > 16, "more than one group a row"


def test_smaller_groups_stray_less(tiny: LanguageModel) -> None:
    def error(group_size: int) -> float:
        rounded = copy.deepcopy(tiny.model)
        quantize_int4_(rounded, group_size)
        pairs = zip(linear_layers(rounded).values(), linear_layers(tiny.model).values(), strict=True)
        return sum(float((a.weight - b.weight).detach().square().sum()) for a, b in pairs)

    assert 0 < error(8) < error(32) < error(128)


def test_half_precision_stays_half_precision(tiny: LanguageModel) -> None:
    exact = copy.deepcopy(tiny.model).to(torch.bfloat16).float()
    quantize_int4_(exact, 32)
    quantize_int4_(tiny.model.to(torch.bfloat16), 32)
    for half, full in zip(tiny.model.parameters(), exact.parameters(), strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, full.to(torch.bfloat16))


def test_the_defense_is_the_quantisation(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run]
) -> None:
    expected = copy.deepcopy(tiny.model)
    quantize_int4_(expected, 16)
    config = quantize_int4.Config(group_size=16)
    repaired = quantize_int4.defend(tiny, CleanData(few_rows), config, new_run())
    assert not changed(weights(expected), repaired)
