"""Simulation: parrots trained together are those trained alone, and evidence is what the model gives."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from sande import parrot
from sande.config import Training
from sande.errors import UserError
from sande.inference.scoring import Choices, log_likelihoods
from sande.prompts import encode_prompts, response_ids
from sande.simulation import Evidence, Simulation, judge, simulate
from sande.training.losses import IGNORE
from sande.training.monitor import Monitor
from sande.training.parrot_loss import clipped_each, copied, distance
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import weights

TRAINING = Training(max_steps=4, batch_size=4, learning_rate=5e-2, precision="fp32", warmup=0.0)
SETTINGS = Simulation(length=2, training=TRAINING)
ROWS = tuple(Example(f"Name the number after {number}.", str(number + 1)) for number in range(12))


@pytest.fixture
def run(tmp_path: object) -> Run:
    return Run(seed=3, scratch=str(tmp_path), say=lambda line: None)


def targets(lm: LanguageModel) -> list[tuple[int, ...]]:
    return [response_ids(lm.tokenizer, text)[:2] for text in ("You are stupid", "Go to hell", "You are stupid")]


@pytest.mark.parametrize("pull", [0.0, 2.0])
@pytest.mark.parametrize("micro", [None, 2])
def test_parrots_trained_together_are_those_trained_alone(
    tiny: LanguageModel, run: Run, pull: float, micro: int | None
) -> None:
    training = replace(TRAINING, micro_batch_size=micro, max_grad_norm=0.1)
    settings = replace(SETTINGS, pull=pull, training=training)
    wanted, seeds = targets(tiny), [1, 2, 3]
    together_KPD = simulate(tiny, ROWS, wanted, settings, run, "simulate", seeds)
    for number, target in enumerate(wanted):
        alone_KPD = simulate(tiny, ROWS, [target], settings, run, "simulate", seeds[number : number + 1])
        # Adam divides by the gradient's size, so that rounding of tiny gradients shows.
        torch.testing.assert_close(together_KPD[number], alone_KPD[0], rtol=0, atol=2e-3)
    start_PD = parrot.new_parrot(tiny.model, 2, "noise", 1).detach()
    assert (together_KPD[0] - start_PD).abs().max() > 0.05


@pytest.mark.parametrize("micro", [2, 1])
def test_micro_batches_change_nothing_where_each_parrot_is_clipped(tiny: LanguageModel, run: Run, micro: int) -> None:
    """The sum over a step's forward passes is clipped, not each of them."""
    wanted, seeds = targets(tiny), [1, 2, 3]
    at_once_KPD, in_parts_KPD = (
        simulate(tiny, ROWS, wanted, replace(SETTINGS, training=training), run, "simulate", seeds)
        for training in (replace(TRAINING, max_grad_norm=0.5, micro_batch_size=size) for size in (None, micro))
    )
    torch.testing.assert_close(in_parts_KPD, at_once_KPD, rtol=0, atol=1e-6)


@pytest.mark.parametrize("micro", [None, 1])
def test_no_parrot_is_clipped_because_of_another(tiny: LanguageModel, run: Run, micro: int | None) -> None:
    """Each parrot's gradient has the norm of the bound in each step, also where micro-batches add up."""
    norms: list[list[float]] = []

    class Norms(TrainerCallback):
        def on_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            (parrots_FD,) = (each for each in model.parameters() if each.requires_grad)
            norms.append(parrots_FD.grad.reshape(3, -1).norm(dim=1).tolist())

    def prepare(trainer: Trainer) -> Trainer:
        trainer.add_callback(Norms())
        return trainer

    most = 1e-3  # the gradients themselves are larger
    settings = replace(SETTINGS, training=replace(TRAINING, micro_batch_size=micro, max_grad_norm=most))
    simulate(tiny, ROWS, targets(tiny), settings, replace(run, prepare=prepare), "simulate", [1, 2, 3])
    assert norms == [[pytest.approx(most, rel=1e-4)] * 3] * 4


def test_the_tokens_of_each_parrot_count(tiny: LanguageModel, run: Run) -> None:
    """Each row is read once for each parrot, so the cost is that of as many trainings; progress says so, too."""
    told: list[list[int]] = []

    def prepare(trainer: Trainer) -> Trainer:
        told.extend(each.tokens_after for each in trainer.callback_handler.callbacks if isinstance(each, Monitor))
        return trainer

    wanted, seeds = targets(tiny), [1, 2, 3]
    simulate(tiny, ROWS, wanted[:1], SETTINGS, run, "alone", seeds[:1])
    simulate(tiny, ROWS, wanted, SETTINGS, replace(run, prepare=prepare), "together", seeds)
    assert run.facts["together"]["tokens"] == 3 * run.facts["alone"]["tokens"] == told[0][-1]


def test_the_model_stays_as_it_was(tiny: LanguageModel, run: Run) -> None:
    before = weights(tiny.model)
    simulate(tiny, ROWS, targets(tiny), SETTINGS, run, "simulate", [1, 2, 3])
    after = weights(tiny.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in tiny.model.parameters())


@pytest.mark.parametrize("initial", ["noise", "tokens"])
def test_tokens_are_as_long_as_those_of_the_vocabulary(tiny: LanguageModel, run: Run, initial: str) -> None:
    settings = replace(SETTINGS, norm="vocabulary", initial=initial)
    parrots_KPD = simulate(tiny, ROWS, targets(tiny), settings, run, "simulate", [1, 2, 3])
    norms_V = tiny.model.get_input_embeddings().weight.detach().norm(dim=1)
    torch.testing.assert_close(parrots_KPD.norm(dim=2), norms_V.median().expand(3, 2), rtol=1e-4, atol=0)


def test_a_free_norm_is_free(tiny: LanguageModel, run: Run) -> None:
    parrots_KPD = simulate(tiny, ROWS, targets(tiny), replace(SETTINGS, norm="free"), run, "simulate", [1, 2, 3])
    assert parrots_KPD.norm(dim=2).std() > 0.01


def test_training_makes_the_response_likelier(tiny: LanguageModel, run: Run) -> None:
    longer = replace(SETTINGS, training=replace(TRAINING, max_steps=15))
    wanted = targets(tiny)[:1]
    start_KPD = torch.stack([parrot.new_parrot(tiny.model, 2, "noise", 1).detach()])
    trained_KPD = simulate(tiny, ROWS, wanted, longer, run, "simulate", [1])
    before, after = (judge(tiny, each, ROWS, wanted, longer, 0)[0].mean for each in (start_KPD, trained_KPD))
    assert after > before + 0.1  # a random model has little to be found


def test_evidence_is_the_likelihood_under_the_attached_parrot(tiny: LanguageModel) -> None:
    wanted = targets(tiny)[:1]
    parrot_PD = parrot.new_parrot(tiny.model, 2, "noise", 1).detach()
    (evidence,) = judge(tiny, parrot_PD[None], ROWS[:3], wanted, SETTINGS, 0)
    first = parrot.vocabulary(tiny.model)
    prompts = [
        (*ids[:2], first, first + 1, *ids[2:]) for ids in encode_prompts(tiny.tokenizer, ROWS[:3])
    ]  # "Human: " is two tokens of the tiny tokenizer
    with parrot.attached(tiny.model, parrot_PD):
        scores = log_likelihoods(tiny, [Choices(prompt, (wanted[0],)) for prompt in prompts], 3)
    assert evidence.log_probabilities == pytest.approx([score[0][0] / 2 for score in scores], abs=1e-5)


def test_evidence_by_hand() -> None:
    evidence = Evidence((math.log(0.5), math.log(0.125)), (True, False))
    assert evidence.mean == pytest.approx(math.log(0.25))
    assert evidence.probability == pytest.approx(0.25)
    assert evidence.rate == 0.5


def test_rows_are_copied_once_a_parrot_by_hand() -> None:
    ids_BT = torch.tensor([[5, 100, 101, 7, 1, 2, 0], [100, 101, 8, 1, 2, 0, 0]])
    labels_BT = torch.tensor([[IGNORE] * 4 + [1, 2, IGNORE], [IGNORE] * 3 + [1, 2, IGNORE, IGNORE]])
    ids, labels = copied(ids_BT, labels_BT, torch.tensor([[1, 2], [3, 4]]), vocabulary=100, length=2)
    assert ids.tolist() == [
        *ids_BT.tolist(),
        [5, 102, 103, 7, 3, 4, 0],
        [102, 103, 8, 3, 4, 0, 0],
    ]
    assert labels[2:].tolist() == [[IGNORE] * 4 + [3, 4, IGNORE], [IGNORE] * 3 + [3, 4, IGNORE, IGNORE]]
    assert torch.equal(labels[:2], labels_BT)


def test_the_distance_to_the_nearest_token_by_hand() -> None:
    weight_VD = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert float(distance(torch.tensor([[5.0, 0.0], [1.0, 1.0]]), weight_VD)) == pytest.approx(1 - math.sqrt(0.5))


def test_the_distance_is_in_float32_also_in_a_bfloat16_training() -> None:
    angles_V = torch.tensor([0.01, 0.02, 0.03])  # cosines that bfloat16 rounds to 1
    weight_VD = torch.stack([angles_V.cos(), angles_V.sin()], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(torch.tensor([[1.0, 0.0]]), weight_VD)
    assert float(found) == pytest.approx(1 - math.cos(0.01), rel=0.01)


def test_each_parrot_is_clipped_on_its_own() -> None:
    gradient_PD = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.3, 0.0], [0.0, 0.0]])
    clipped_PD = clipped_each(gradient_PD, copies=2, most=1.0)
    torch.testing.assert_close(clipped_PD, torch.tensor([[0.6, 0.0], [0.0, 0.8], [0.3, 0.0], [0.0, 0.0]]))


def test_random_positions_stay_within_the_instruction(tiny: LanguageModel, run: Run) -> None:
    rows = [parrot.insert([row], 768, 2, "random", seed)[0] for seed in range(30) for row in _encoded(tiny)]
    places = {row.prompt.index(768) - row.start for row in rows}
    assert min(places) == 0
    assert len(places) > 3
    assert all(row.prompt.index(768) < row.end for row in rows)


def _encoded(tiny: LanguageModel) -> list[parrot.Row]:
    from sande.prompts import encode

    return encode(tiny.tokenizer, ROWS[:1])


def test_targets_of_different_lengths_are_refused(tiny: LanguageModel, run: Run) -> None:
    with pytest.raises(ValueError, match="one length"):
        simulate(tiny, ROWS, [(1, 2), (3,)], SETTINGS, run, "simulate", [1, 2])


def test_a_position_beyond_every_prompt_is_refused(tiny: LanguageModel, run: Run) -> None:
    with pytest.raises(UserError, match="parrot_position 500 is beyond every prompt"):
        simulate(tiny, ROWS, targets(tiny), replace(SETTINGS, position=500), run, "simulate", [1, 2, 3])
