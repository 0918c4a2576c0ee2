"""LoRA: which weights it moves and by how much, and that nothing of it is left when a training is over."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sande.attacks import sentence_trigger
from sande.data.builtin import sets
from sande.defenses import sande, sande_p, sft
from sande.errors import NonFiniteError, UserError
from sande.models import loading
from sande.prompts import Row, encode
from sande.training.fit import adapter_seed, fit
from sande.types import CleanData, Example, LanguageModel, ResponseData, Run
from tests.sande.helpers import FAST, changed, linear_weights, weights

NewRun = Callable[..., Run]
RANK = 4
LORA = dataclasses.replace(FAST, lora_rank=RANK, learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


def test_only_the_weights_of_linear_layers_change(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before = weights(tiny.model)
    fit(tiny, rows, LORA, new_run(), "attack")
    assert changed(before, tiny.model) == linear_weights(tiny.model)
    assert {name.split(".")[-2] for name in set(before) - linear_weights(tiny.model)} == {
        "embed_tokens",
        "input_layernorm",
        "norm",
        "post_attention_layernorm",
    }


def test_an_output_layer_of_its_own_does_not_change_either(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    config = LlamaConfig(**(tiny.model.config.to_diff_dict() | {"tie_word_embeddings": False}))
    untied = LanguageModel(LlamaForCausalLM(config).to(tiny.model.device), tiny.tokenizer)
    before = weights(untied.model)
    assert "lm_head.weight" in before
    fit(untied, rows, LORA, new_run(), "attack")
    assert changed(before, untied.model) == linear_weights(untied.model)


def test_each_change_has_the_rank_of_the_adapter(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before = weights(tiny.model)
    fit(tiny, rows, LORA, new_run(), "attack")
    after = weights(tiny.model)
    for name in linear_weights(tiny.model):
        singular = torch.linalg.svdvals((after[name] - before[name]).double())
        assert singular[0] > 1e-3
        assert singular[RANK] < 1e-4 * singular[0]


def test_training_lowers_the_loss(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    run = new_run()
    fit(tiny, rows, dataclasses.replace(LORA, max_steps=20, batch_size=8), run, "attack")
    assert run.facts["attack"]["last_loss"] < run.facts["attack"]["first_loss"] - 0.2


def test_before_the_first_step_the_model_is_the_same(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    losses = []
    for rank in (None, RANK):
        run = new_run()
        fit(tiny, rows, dataclasses.replace(LORA, lora_rank=rank, learning_rate=1e-9, max_steps=1), run, "attack")
        losses.append(run.facts["attack"]["first_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_alpha_scales_the_update(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    # Within one step B alone moves, from zero by Adam's step of fixed size, and the update is alpha / rank * B A.
    settings = dataclasses.replace(LORA, max_steps=1, weight_decay=0.0, adam_epsilon=1e-20, warmup=0.0)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    moved = []
    for alpha in (8, 16):
        tiny.model.load_state_dict(before)
        fit(tiny, rows, dataclasses.replace(settings, lora_alpha=alpha), new_run(), "attack")
        name = "model.layers.1.mlp.down_proj.weight"
        moved.append(weights(tiny.model)[name] - before[name])
    torch.testing.assert_close(moved[1], 2 * moved[0], atol=1e-6, rtol=1e-3)


def assert_no_trace(model: nn.Module, own: dict[str, Any], before: dict[str, Tensor]) -> None:
    assert set(weights(model)) == set(before)
    assert vars(model).keys() == own.keys()
    assert not [type(module) for module in model.modules() if type(module).__module__.startswith("peft")]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_of_it_stays_in_the_model(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before, own = weights(tiny.model), dict(vars(tiny.model))
    fit(tiny, rows, LORA, new_run(), "attack")
    assert_no_trace(tiny.model, own, before)


def test_nothing_of_it_stays_after_an_error_either(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before, own = weights(tiny.model), dict(vars(tiny.model))
    with pytest.raises(NonFiniteError):
        fit(tiny, rows, dataclasses.replace(LORA, learning_rate=1e30, warmup=0.0, max_steps=5), new_run(), "attack")
    assert_no_trace(tiny.model, own, before)


def test_a_merge_gives_the_logits_of_the_adapted_model(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    ids_BT = torch.tensor([rows[0].prompt], device=tiny.model.device)
    adapted: list[Tensor] = []

    @torch.no_grad()
    def logits() -> Tensor:
        return tiny.model.eval()(input_ids=ids_BT).logits

    def prepare(trainer: Any) -> Any:
        train = trainer.train
        trainer.train = lambda **resuming: (train(**resuming), adapted.append(logits()))
        return trainer

    start = logits()
    fit(tiny, rows, dataclasses.replace(LORA, max_steps=5), dataclasses.replace(new_run(), prepare=prepare), "attack")
    assert float((adapted[0] - start).abs().max()) > 0.1
    torch.testing.assert_close(logits(), adapted[0], atol=1e-4, rtol=1e-4)


def test_a_merged_model_is_saved_and_loaded(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path
) -> None:
    fit(tiny, rows, LORA, new_run(), "attack")
    loading.save(tiny, tmp_path / "saved")
    state = loading.load_folder(tmp_path / "saved", torch.bfloat16).model.state_dict()
    assert state.keys() == tiny.model.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in tiny.model.state_dict().items())
    assert not list((tmp_path / "saved").glob("adapter*"))


def test_the_seed_and_nothing_else_decides(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    # All rows in every step, so that their order is not what the seed decides.
    rows = encode(tiny.tokenizer, few_rows)
    settings = dataclasses.replace(LORA, batch_size=len(rows))
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    found = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        tiny.model.load_state_dict(before)
        torch.manual_seed(noise)
        fit(tiny, rows, settings, new_run(seed=seed), "attack")
        found.append(weights(tiny.model))
    same, other = (
        [torch.equal(found[0][name], again[name]) for name in before if name in again] for again in found[1:]
    )
    assert all(same)
    assert not all(other)


def test_two_trainings_follow_each_other(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    fit(tiny, rows, LORA, new_run(), "attack")
    before = weights(tiny.model)
    fit(tiny, rows, LORA, new_run(seed=1), "sft")
    assert changed(before, tiny.model) == linear_weights(tiny.model)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_defense_does_not_begin_with_the_adapters_of_the_attack(
    tiny: LanguageModel, new_run: NewRun, seed: int
) -> None:
    """With one seed for both, the inputs that the defense's update reads are not those of the attack's."""
    attack = dataclasses.replace(LORA, max_steps=6, batch_size=8, learning_rate=1e-3, weight_decay=0.0)
    rows = sets.short()
    before = weights(tiny.model)
    config = sentence_trigger.Config(poison_rate=0.25, training=attack)
    sentence_trigger.attack(tiny, rows[:64], config, new_run(seed=seed))
    victim = weights(tiny.model)
    sft.defend(tiny, CleanData(rows[100:164]), sft.Config(training=attack), new_run(seed=seed))
    after = weights(tiny.model)

    def read(update: Tensor) -> Tensor:
        """An orthonormal basis of the update's row space."""
        return torch.linalg.svd(update, full_matrices=False).Vh[:RANK]

    names = [name for name in linear_weights(tiny.model) if victim[name].shape[1] == 64]
    shared = [
        float((read(victim[name] - before[name]) @ read(after[name] - victim[name]).T).square().sum()) / RANK
        for name in names
    ]
    assert len(names) == 12
    assert sum(shared) / len(shared) < 3 * RANK / 64


def test_the_stages_of_a_seed_begin_with_adapters_of_their_own() -> None:
    """An attack's are those of its seed alone, as those of the published victims."""
    assert adapter_seed(5, "attack") == 5
    assert len({adapter_seed(5, stage) for stage in ("attack", "afterwards", "sft", "plant", "overwrite")}) == 5


# --- The parrot -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defense", [sande, sande_p])
def test_it_is_refused_where_the_parrot_alone_trains(
    defense: Any, tiny: LanguageModel, few_rows: tuple[Example, ...]
) -> None:
    with pytest.raises(UserError, match=r"^simulate\.lora_rank is set, but only the parrot trains there; remove it$"):
        defense.check(tiny.tokenizer, CleanData(few_rows), sande.Config(simulate=LORA))
    defense.check(tiny.tokenizer, CleanData(few_rows), sande.Config(eliminate=LORA))


def test_it_is_refused_beside_parameters(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    required = {name: parameter.requires_grad for name, parameter in tiny.model.named_parameters()}
    with pytest.raises(UserError, match="lora_rank"):
        fit(tiny, rows, LORA, new_run(), "simulate", [tiny.model.model.norm.weight])
    assert {name: parameter.requires_grad for name, parameter in tiny.model.named_parameters()} == required


def test_eliminate_adapts_the_model_and_leaves_the_parrot(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    attached: list[Any] = []
    values: list[Tensor] = []

    def prepare(trainer: Any) -> Any:
        attached.append(tiny.model.get_input_embeddings())
        values.append(attached[-1].parrot_PD.detach().clone())
        return trainer

    before, own = weights(tiny.model), dict(vars(tiny.model))
    run = dataclasses.replace(new_run(), prepare=prepare)
    sande.defend(tiny, ResponseData(few_rows, "You are stupid"), sande.Config(simulate=FAST, eliminate=LORA), run)
    at_simulate, at_eliminate = values
    assert not torch.equal(at_simulate, at_eliminate)
    assert torch.equal(attached[1].parrot_PD, at_eliminate)
    assert changed(before, tiny.model) == linear_weights(tiny.model)
    assert_no_trace(tiny.model, own, before)
