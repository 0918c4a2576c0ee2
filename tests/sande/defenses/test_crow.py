"""CROW: the distance of layers by hand, padding, the adversarial direction, and its ends."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sande import registry
from sande.defenses import crow, sft
from sande.errors import UserError
from sande.models.layers import block_states
from sande.prompts import encode
from sande.training.batches import Collator, features
from sande.training.objective import ResponseLoss
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import FAST, changed, linear_weights, weights

NewRun = Callable[..., Run]


def batch_of(lm: LanguageModel, rows: tuple[Example, ...], pad: int = 0) -> dict[str, Tensor]:
    return Collator(pad)([features(row) for row in encode(lm.tokenizer, rows)])


def loss(lm: LanguageModel, batch: dict[str, Tensor], config: crow.Config) -> float:
    targets = torch.tensor(float(len(batch["positions"])))
    with torch.no_grad():
        return float(crow.consistent(lm.model, config)(**batch, num_items_in_batch=targets)["loss"])


def test_the_distance_by_hand() -> None:
    first = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [5.0, 5.0]]])
    second = torch.tensor([[[0.0, 3.0], [2.0, 2.0]], [[0.0, -1.0], [5.0, -5.0]]])
    third = torch.tensor([[[0.0, 1.0], [-1.0, -1.0]], [[0.0, -7.0], [1.0, 0.0]]])
    # Row 0: token 0 has distances 1 and 0, token 1 has 0 and 2. Row 1: token 0 has 2 and 0, token 1 is padding.
    found = crow.layer_distance([first, second, third], torch.tensor([[1, 1], [1, 0]]))
    torch.testing.assert_close(found, torch.tensor([(0.5 + 1.0) / 2, 1.0]))


def test_each_block_gives_its_states_once_a_pass_and_nothing_stays(tiny: LanguageModel) -> None:
    with block_states(tiny.model) as states, torch.no_grad():
        last = tiny.model.get_decoder()(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    assert [tuple(state.shape) for state in states] == [(1, 3, 64)] * 2
    assert torch.equal(states[0], last.hidden_states[1])
    torch.testing.assert_close(tiny.model.get_decoder().norm(states[1]), last.last_hidden_state)
    with torch.no_grad():
        tiny.model.get_decoder()(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(states) == 2, "a pass afterwards adds nothing"


def test_padding_changes_nothing(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    config = crow.Config(training=dataclasses.replace(FAST, batch_size=2))
    pair = (few_rows[0], few_rows[12])  # a short and a long row
    together = loss(tiny, batch_of(tiny, pair, pad=3), config)
    alone = [batch_of(tiny, (row,)) for row in pair]
    counts = [len(batch["positions"]) for batch in alone]

    def part(batch: dict[str, Tensor]) -> float:
        with torch.no_grad():
            objective = crow.consistent(tiny.model, config)
            return float(objective(**batch, num_items_in_batch=torch.tensor(float(sum(counts))))["loss"])

    assert together == pytest.approx(sum(map(part, alone)), rel=1e-4)


def test_the_perturbation_makes_the_layers_disagree_more(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    batch = batch_of(tiny, few_rows[:4])
    base = crow.Config(training=FAST, epsilon=0.0)
    plain = loss(tiny, batch, dataclasses.replace(base, alpha=0.0))
    unmoved, moved, other_way = (
        loss(tiny, batch, dataclasses.replace(base, alpha=1.0, epsilon=epsilon)) - plain
        for epsilon in (0.0, 1e-3, 2e-3)
    )
    assert 0 < unmoved < moved < other_way
    count = torch.tensor(float(len(batch["positions"])))
    with torch.no_grad():
        assert plain == pytest.approx(float(ResponseLoss(tiny.model)(**batch, num_items_in_batch=count)["loss"]))


def test_without_consistency_it_is_fine_tuning(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    start = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    expected = weights(sft.defend(tiny, CleanData(few_rows), sft.Config(training=FAST), new_run()))
    tiny.model.load_state_dict(start)
    found = weights(crow.defend(tiny, CleanData(few_rows), crow.Config(alpha=0.0, training=FAST), new_run()))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-6, rtol=0)


def test_training_makes_the_layers_agree_more(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    batch = batch_of(tiny, few_rows)

    def distance() -> float:
        with block_states(tiny.model) as states, torch.no_grad():
            tiny.model.get_decoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return float(crow.layer_distance(states, batch["attention_mask"]).mean())

    before = distance()
    training = dataclasses.replace(FAST, max_steps=10, learning_rate=1e-2)
    crow.defend(tiny, CleanData(few_rows), crow.Config(training=training), new_run())
    assert distance() < 0.8 * before


def test_the_published_recipe_is_that_of_the_authors() -> None:
    config = registry.config("defenses", "crow", {"recipe": "published"})
    training = config.training
    assert (training.lora_rank, training.learning_rate, training.epochs, training.batch_size, training.warmup) == (
        8, 1e-3, 5.0, 8, 0.1,
    )  # fmt: skip
    assert (config.alpha, config.epsilon) == (5.5, 0.1)
    equal = registry.config("defenses", "crow", {})
    assert (equal.recipe, equal.training.lora_rank, equal.training.epochs) == ("equal", None, 2.0)


def test_with_adapters_the_linear_layers_alone_train(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    before, run = weights(tiny.model), new_run()
    with torch.no_grad():
        spread = float(before["model.embed_tokens.weight"].std())
    config = crow.Config(recipe="published")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, max_steps=2))
    repaired = crow.defend(tiny, CleanData(few_rows), config, run)
    assert changed(before, repaired) == linear_weights(repaired)
    assert run.facts["epsilon_relative"] == pytest.approx(0.1 / spread)


def test_a_model_of_one_block_is_refused(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    del tiny.model.get_decoder().layers[1:]
    with pytest.raises(UserError, match=r"^crow: the model has one block, "):
        crow.defend(tiny, CleanData(few_rows), crow.Config(training=FAST), new_run())
