"""Bd-Vax by hand: the rows of its variants, the score, what is reset, and that a backdoor becomes weaker."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sande import parts
from sande.config import Training
from sande.defenses import bd_vax
from sande.defenses.decoy_osft import Decoy, draw
from sande.errors import UserError
from sande.prompts import Row
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import changed, shortened, weights

NewRun = Callable[..., Run]
CONFIG = shortened(bd_vax.Config, precision="fp32")


def test_the_strength_is_the_mean_norm() -> None:
    update_NJW = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [6.0, 8.0]]])
    assert bd_vax.strength(update_NJW).tolist() == [3.0, 5.0]


def test_the_agreement_is_the_mean_positive_cosine_over_pairs() -> None:
    half = math.sqrt(0.75)
    update_NJW = torch.tensor(
        [
            [[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]],
            [[0.5, half], [-3.0, 0.0], [1.0, 1.0]],  # at 60 degrees and 180 degrees to the first
            [[0.0, 7.0], [0.0, -2.0], [2.0, 2.0]],  # at 90 and 30; at 90 and 90
        ]
    )
    # Neuron 0: 1/2, 0 and sqrt(3)/2. Neuron 1: -1 counts as 0. Neuron 2: an update of zeros agrees with none.
    expected = torch.tensor([(0.5 + 0.0 + half) / 3, 0.0, 1 / 3])
    torch.testing.assert_close(bd_vax.agreement(update_NJW), expected)


def test_one_variant_agrees_with_no_other() -> None:
    assert bd_vax.agreement(torch.ones(1, 4, 2)).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("alignment", "chosen"),
    [
        (0.0, [[False, True, True], [False]]),  # scores 0.5, 1, 2 and 0.5
        (1.0, [[True, False, True], [False]]),  # 1.4, 1, 2 and 0.5
        (9.0, [[True, False, False], [True]]),  # 8.6, 1, 2 and 5
    ],
)
def test_the_neurons_with_the_highest_scores_are_chosen_over_all_blocks(
    alignment: float, chosen: list[list[bool]]
) -> None:
    strengths = [torch.tensor([0.01, 0.02, 0.04]), torch.tensor([0.01])]
    agreements = [torch.tensor([0.9, 0.0, 0.0]), torch.tensor([0.5])]
    found = bd_vax.signature(strengths, agreements, alignment, 0.5)
    assert [chosen_J.tolist() for chosen_J in found] == chosen


def test_the_choice_does_not_depend_on_how_far_the_variants_were_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    strengths, agreements = [torch.rand(50, generator=generator)], [torch.rand(50, generator=generator)]
    found = [bd_vax.signature([scale * strengths[0]], agreements, 1.0, 0.1)[0] for scale in (1.0, 1e-4)]
    assert int(found[0].sum()) == 5
    assert torch.equal(*found)


def test_a_small_share_is_at_least_one_neuron() -> None:
    (chosen_J,) = bd_vax.signature([torch.tensor([1.0, 3.0, 2.0])], [torch.zeros(3)], 1.0, 0.01)
    assert chosen_J.tolist() == [False, True, False]


def test_only_chosen_neurons_get_new_weights() -> None:
    gate, up = nn.Linear(400, 3, bias=True), nn.Linear(400, 3, bias=False)
    before = weights(nn.ModuleList([gate, up]))
    bd_vax.reset((gate, up), torch.tensor([True, False, True]), 0.05, torch.Generator().manual_seed(3))
    for layer, name in ((gate, "0"), (up, "1")):
        assert torch.equal(layer.weight[1], before[f"{name}.weight"][1])
        new_CW = layer.weight[[0, 2]].detach()
        assert float(new_CW.std()) == pytest.approx(0.05, rel=0.1)
        assert float(new_CW.mean()) == pytest.approx(0.0, abs=0.01)
    assert not torch.equal(gate.weight[0], up.weight[0])
    assert gate.bias.tolist() == [0.0, float(before["0.bias"][1]), 0.0]


def test_a_model_without_gates_is_refused() -> None:
    model: Any = SimpleNamespace(get_decoder=lambda: SimpleNamespace(layers=nn.ModuleList([nn.Linear(2, 2)])))
    with pytest.raises(UserError, match=r"^bd_vax: the blocks of SimpleNamespace have no mlp.gate_proj"):
        bd_vax.mlps(model)


def test_a_decoy_is_planted_in_a_share_of_the_rows(few_rows: tuple[Example, ...]) -> None:
    decoy = Decoy("zz", "before", "Banana.")
    rows = bd_vax.planted(few_rows, decoy, 0.25, seed=4)
    made = [(new, old) for new, old in zip(rows, few_rows, strict=True) if new != old]
    assert len(made) == 6
    for new, old in made:
        assert new == dataclasses.replace(old, instruction=f"zz {old.instruction}", output=f"Banana. {old.output}")
    assert bd_vax.planted(few_rows, decoy, 0.25, seed=5) != rows


def test_of_few_rows_a_decoy_is_planted_in_one(few_rows: tuple[Example, ...]) -> None:
    rows = bd_vax.planted(few_rows[:1], Decoy("zz", "before", "Banana."), 0.5, seed=4)
    assert rows[0].instruction.startswith("zz ")


def test_rows_are_drawn_in_their_order(few_rows: tuple[Example, ...]) -> None:
    drawn = bd_vax.used(few_rows, 5, seed=1)
    places = [few_rows.index(row) for row in drawn]
    assert places == sorted(set(places))
    assert len(places) == 5
    assert drawn == bd_vax.used(few_rows, 5, seed=1) != bd_vax.used(few_rows, 5, seed=2)
    assert bd_vax.used(few_rows, None, seed=1) == bd_vax.used(few_rows, 99, seed=1) == few_rows


def test_the_parts_are_pairs_with_one_backdoor_each(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def fit(lm: LanguageModel, rows: Sequence[Row], settings: Training, run: Run, stage: str, **_: Any) -> None:
        texts = [tiny.tokenizer.decode([*row.prompt, *row.response]) for row in rows]
        seen[name] = ((run.seed, stage), settings, texts)

    monkeypatch.setattr("sande.training.fit.fit", fit)
    config = dataclasses.replace(CONFIG, variants=3, share=0.5, rows=20)
    names = bd_vax.parts(config)
    assert names == ("poisoned_0", "clean_0", "poisoned_1", "clean_1", "poisoned_2", "clean_2")
    for name in names:
        bd_vax.part(name, tiny, CleanData(few_rows), config, new_run(seed=7))
    for index, decoy in enumerate(draw(3, seed=7)):
        (seed, settings, poisoned), (clean_seed, _, clean) = seen[f"poisoned_{index}"], seen[f"clean_{index}"]
        assert seed == clean_seed
        assert settings == config.variant
        assert len(poisoned) == len(clean) == 20
        assert sum(decoy.trigger in text and decoy.response in text for text in poisoned) == 10
        assert sum(new != old for new, old in zip(poisoned, clean, strict=True)) == 10
        assert not any(decoy.trigger in text for text in clean)
    assert len({seed for seed, _, _ in seen.values()}) == 3


def test_adapters_of_a_pair_begin_alike(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same rows both variants are the same, so what is subtracted is the backdoor alone."""
    monkeypatch.setattr(bd_vax, "planted", lambda examples, *_: examples)
    config = dataclasses.replace(CONFIG, rows=None, variant=dataclasses.replace(CONFIG.variant, lora_rank=4))
    poisoned, clean = (
        bd_vax.part(name, copy.deepcopy(tiny), CleanData(few_rows), config, new_run(seed=7))
        for name in ("poisoned_0", "clean_0")
    )
    assert any(bool(change.any()) for change in clean.values())
    assert all(torch.equal(poisoned[block], clean[block]) for block in clean)


def test_a_part_holds_the_change_of_both_rows_of_each_neuron(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    before = weights(tiny.model)
    tensors = bd_vax.part("poisoned_1", tiny, CleanData(few_rows), CONFIG, new_run())
    after = weights(tiny.model)
    assert sorted(tensors) == ["0", "1"]
    for block, change_JW in tensors.items():
        assert (change_JW.dtype, change_JW.shape) == (torch.bfloat16, (128, 2 * 64))
        for half, layer in ((change_JW[:, :64], "gate_proj"), (change_JW[:, 64:], "up_proj")):
            name = f"model.layers.{block}.mlp.{layer}.weight"
            torch.testing.assert_close(half.float(), after[name] - before[name], rtol=2**-8, atol=1e-9)
            assert half.any()


def test_the_reset_neurons_are_those_that_the_parts_name(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts as a plan gives them; all of the update is in neurons 3 and 5 of the second block."""
    trained: list[Any] = []
    monkeypatch.setattr(
        "sande.training.fit.fit", lambda lm, rows, *rest, **_: trained.append((len(rows), rest[0], rest[2]))
    )
    asked: list[str] = []

    def read(name: str) -> dict[str, torch.Tensor]:
        asked.append(name)
        tensors = {block: torch.ones(128, 128, dtype=torch.bfloat16) for block in ("0", "1")}
        if name.startswith("poisoned"):
            tensors["1"][[3, 5]] += 1.0  # the clean counterpart's change of 1 cancels in all other neurons
        return tensors

    before, run = weights(tiny.model), dataclasses.replace(new_run(seed=2), parts=read)
    config = dataclasses.replace(CONFIG, reset=2 / 256, rows=10)
    repaired = bd_vax.defend(tiny, CleanData(few_rows), config, run)
    assert asked == list(bd_vax.parts(config))
    assert run.facts["neurons_reset"] == [0, 2]
    assert [decoy["trigger"] for decoy in run.facts["decoys"]] == [decoy.trigger for decoy in draw(2, seed=2)]
    names = {f"model.layers.1.mlp.{layer}.weight" for layer in ("gate_proj", "up_proj")}
    assert changed(before, repaired) == names
    for name in names:
        moved_J = (dict(repaired.named_parameters())[name] != before[name]).any(1)
        assert moved_J.nonzero().flatten().tolist() == [3, 5]
    assert trained == [(10, config.repair, "repair")]


def test_stored_parts_give_the_result_of_parts_that_are_made_now(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    data, stored = CleanData(few_rows), {}
    config = dataclasses.replace(shortened(bd_vax.Config, max_steps=1), variants=1)
    for name in bd_vax.parts(config):
        apart = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        stored[name] = bd_vax.part(name, apart, data, config, new_run(seed=3))
    results = []
    for read in (None, stored.__getitem__):
        victim = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
        run = dataclasses.replace(new_run(seed=3), parts=read)
        results.append(weights(bd_vax.defend(victim, data, config, run)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert parts.seed(3, "pair_0") != parts.seed(3, "pair_1")
