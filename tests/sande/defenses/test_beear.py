"""BEEAR: where the perturbation acts, that it draws unwanted answers, and that training works against it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sande.defenses import beear
from sande.models import loading
from sande.models.layers import blocks
from sande.prompts import encode
from sande.training.batches import Collator, features
from sande.training.losses import IGNORE
from sande.training.objective import ResponseLoss
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import FAST, nll_by_hand, planted_texts, teach, tokens, weights, words

NewRun = Callable[..., Run]


def batch_of(lm: LanguageModel, rows: tuple[Example, ...]) -> dict[str, Tensor]:
    return Collator(0)([features(row) for row in encode(lm.tokenizer, rows)])


def test_the_perturbation_acts_on_the_last_tokens_of_each_prompt() -> None:
    delta_KD = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    spread = beear.spread(delta_KD, torch.tensor([2, 0]), 4)
    assert spread[..., 0].tolist() == [[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert torch.equal(spread[..., 1], 10 * spread[..., 0])


def test_a_prompt_ends_before_the_first_target() -> None:
    labels_BT = torch.tensor([[IGNORE, IGNORE, 5, 6], [IGNORE, 7, 8, IGNORE]])
    assert beear.prompt_ends(labels_BT).tolist() == [1, 0]


@pytest.mark.parametrize(("depth", "index"), [(0.01, 0), (0.3, 0), (0.8, 1), (1.0, 1)])
def test_the_block_is_a_share_of_the_depth(tiny: LanguageModel, depth: float, index: int) -> None:
    assert beear.place(tiny.model, depth) == index


def test_a_perturbed_block_gives_the_sum_and_afterwards_what_it_gave(tiny: LanguageModel) -> None:
    ids_BT, block = torch.tensor([[5, 6, 7, 8]]), blocks(tiny.model)[1]
    delta_KD = torch.full((2, 64), 0.5)
    with torch.no_grad():
        plain = tiny.model(ids_BT, output_hidden_states=True).hidden_states
        seen: list[Tensor] = []
        with beear.perturbed(block, delta_KD, torch.tensor([2])):
            block.register_forward_hook(lambda module, args, output: seen.append(output))
            tiny.model(ids_BT)
        tiny.model(ids_BT)
    moved = seen[0] - seen[1]
    assert torch.allclose(moved, torch.tensor([0, 0.5, 0.5, 0])[None, :, None].expand(1, 4, 64), atol=1e-6)
    assert len(plain) == 3


def batches(lm: LanguageModel, rows: tuple[Example, ...], *texts: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rows with unwanted answers, and with their own."""
    safe = encode(lm.tokenizer, rows)
    unwanted = beear.with_unwanted(lm.tokenizer, safe, texts or beear.Config().unwanted)
    return Collator(0)([features(row) for row in unwanted]), Collator(0)([features(row) for row in safe])


def test_rows_take_turns_with_the_unwanted_answers(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    rows = encode(tiny.tokenizer, few_rows[:3])
    found = beear.with_unwanted(tiny.tokenizer, rows, ("Go away.", "No"))
    assert [row.prompt for row in found] == [row.prompt for row in rows]
    assert [tiny.tokenizer.decode(row.response) for row in found] == [" Go away.", " No", " Go away."], "without EOS"


def test_the_loss_of_answers_is_that_by_hand(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    rows = beear.with_unwanted(tiny.tokenizer, encode(tiny.tokenizer, few_rows[:3]), ("Go away.", "No"))
    batch = Collator(0)([features(row) for row in rows])
    assert len({len(row) for row in rows}) > 1, "rows of unequal length, or padding is not tested"
    with torch.no_grad():
        plain = float(beear.mean_nll(tiny.model, batch, torch.zeros(2, 64), 0.3))
        moved = float(beear.mean_nll(tiny.model, batch, torch.ones(2, 64), 0.3))
    targets = sum(len(row.response) for row in rows)
    assert plain == pytest.approx(sum(nll_by_hand(tiny, row.prompt, row.response) for row in rows) / targets, rel=1e-5)
    by_hand = 0.0
    for row in rows:
        with beear.perturbed(blocks(tiny.model)[0], torch.ones(2, 64), torch.tensor([len(row.prompt) - 1])):
            by_hand += nll_by_hand(tiny, row.prompt, row.response)
    assert moved == pytest.approx(by_hand / targets, rel=1e-5)
    assert moved != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("away", [0.0, 1.0])
def test_it_is_within_its_ball_and_draws_unwanted_answers(
    tiny: LanguageModel, few_rows: tuple[Example, ...], away: float
) -> None:
    teach(tiny, encode(tiny.tokenizer, few_rows[:8]))
    (unwanted, safe), before = batches(tiny, few_rows[:8]), weights(tiny.model)
    tiny.model.zero_grad()
    config = beear.Config(training=FAST, radius=2.0, inner_steps=20, away=away)
    delta_KD, losses = beear.entrap(tiny.model, unwanted, safe, config)
    ends = beear.prompt_ends(safe["labels"])
    none = torch.zeros_like(delta_KD)
    with torch.no_grad():
        states = tiny.model(safe["input_ids"], attention_mask=safe["attention_mask"], output_hidden_states=True)
        radius = states.hidden_states[1][range(len(ends)), ends].norm(dim=-1).mean()
        for name, batch in (("unwanted", unwanted), ("safe", safe)):
            expected = [float(beear.mean_nll(tiny.model, batch, delta, config.depth)) for delta in (none, delta_KD)]
            assert losses[name] == pytest.approx(expected, rel=1e-4)
    assert bool((delta_KD.norm(dim=-1) <= config.radius * radius * 1.0001).all())
    assert losses["unwanted"][1] - away * losses["safe"][1] < losses["unwanted"][0] - away * losses["safe"][0] - 1
    assert all(torch.equal(before[name], weight) for name, weight in tiny.model.named_parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())


def test_what_is_unwanted_is_no_attacks_response() -> None:
    planted = set().union(*map(words, planted_texts()))
    assert {text: words(text) & planted for text in beear.Config().unwanted if words(text) & planted} == {}


@pytest.mark.slow
def test_what_is_unwanted_shares_no_token_of_smollm2_with_an_attack(tmp_path: Path) -> None:
    tokenizer = loading.load("smollm2-135m", tmp_path).tokenizer
    planted = set().union(*(tokens(tokenizer, text) for text in planted_texts()))
    assert [tokens(tokenizer, text) & planted for text in beear.Config().unwanted] == [set()] * 3


def test_the_outer_loss_is_the_sum_with_and_without(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    batch, count = batch_of(tiny, few_rows[:3]), torch.tensor(10.0)
    objective = beear.unlearning(tiny.model, beear.Config(anchor=0.5))
    with torch.no_grad():
        plain = float(ResponseLoss(tiny.model)(**batch, num_items_in_batch=count)["loss"])
        objective.perturbation = torch.zeros(3, 64)
        assert float(objective(**batch, num_items_in_batch=count)["loss"]) == pytest.approx(1.5 * plain, rel=1e-5)
        objective.perturbation = torch.ones(3, 64)
        moved = float(objective(**batch, num_items_in_batch=count)["loss"]) - 0.5 * plain
        with beear.perturbed(blocks(tiny.model)[0], torch.ones(3, 64), beear.prompt_ends(batch["labels"])):
            logits = tiny.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    positions = batch["positions"]
    log_probabilities = logits.flatten(0, 1)[positions].log_softmax(-1)
    targets = batch["labels"].flatten()[positions + 1]
    assert moved == pytest.approx(-float(log_probabilities.gather(1, targets[:, None]).sum()) / 10, rel=1e-4)
    assert moved != pytest.approx(plain, rel=1e-3)


def test_it_is_found_anew_every_so_many_steps(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    training, run = dataclasses.replace(FAST, max_steps=5), new_run()
    beear.defend(tiny, CleanData(few_rows), beear.Config(training=training, every=2, inner_steps=2), run)
    assert [found["step"] for found in run.facts["entrapped"]] == [0, 2, 4]
    assert all(set(found) == {"step", "unwanted", "safe"} for found in run.facts["entrapped"])
    assert not any("perturb" in name for name, _ in tiny.model.named_parameters())


def test_training_makes_the_model_answer_rightly_under_the_perturbation(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    batch = batch_of(tiny, few_rows)
    training = dataclasses.replace(FAST, max_steps=20, learning_rate=5e-3)
    config = beear.Config(training=training, every=5, inner_steps=5)
    delta_KD, *_ = beear.entrap(tiny.model, *batches(tiny, few_rows), config)

    def loss() -> float:
        objective = beear.unlearning(tiny.model, dataclasses.replace(config, anchor=0.0))
        objective.perturbation = delta_KD
        with torch.no_grad():
            return float(objective(**batch, num_items_in_batch=torch.tensor(1.0))["loss"])

    before = loss()
    beear.defend(tiny, CleanData(few_rows), config, new_run())
    assert loss() < 0.8 * before
