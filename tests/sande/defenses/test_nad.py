"""Neural attention distillation: the distance by hand, the objective put together otherwise, who trains and who not."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sande.defenses import nad, sft
from sande.defenses.nad import attention_distance
from sande.errors import UserError
from sande.prompts import Row, encode
from sande.training.batches import Collator, features
from sande.training.packing import attention
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import FAST, nll_by_hand, noisy, weights

NewRun = Callable[..., Run]
# One row of two tokens, two heads. Squared and summed over the heads: [[2, 0], [1/4, 5/4]] and [[2, 0], [2, 0]].
STUDENT = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]]])
TEACHER = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]])
BY_HAND = math.sqrt(
    sum(
        (a / math.sqrt(4 + 1 / 16 + 25 / 16) - b / math.sqrt(8)) ** 2
        for a, b in [(2, 2), (0, 0), (1 / 4, 2), (5 / 4, 0)]
    )
)
BOTH_TOKENS = torch.ones(1, 2, dtype=torch.long)


def padded(attention_BHTT: Tensor, width: int, value: float) -> Tensor:
    return nn.functional.pad(attention_BHTT, (0, width, 0, width), value=value)


def test_the_distance_is_that_by_hand() -> None:
    found = attention_distance(STUDENT, TEACHER, BOTH_TOKENS, power=2.0)
    assert found.shape == (1,)
    assert float(found) == pytest.approx(BY_HAND, abs=1e-6)


def test_rows_stay_apart() -> None:
    both = BOTH_TOKENS.expand(2, 2)
    found = attention_distance(torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER]), both, power=2.0)
    assert found.tolist() == pytest.approx([BY_HAND, 0.0], abs=1e-6)


@pytest.mark.parametrize("padding", [0, 3])
def test_the_published_distance_is_the_mean_of_squares_over_the_entries_of_a_map(padding: int) -> None:
    mask = torch.tensor([[1, 1, *[0] * padding]])
    maps = padded(STUDENT, padding, 0.3), padded(TEACHER, padding, 0.7)
    found = attention_distance(*maps, mask, power=2.0, distance="mse")
    assert float(found) == pytest.approx(BY_HAND**2 / 4, abs=1e-6)
    student, teacher = (nn.functional.normalize(m.square().sum(1).flatten(1)) for m in (STUDENT, TEACHER))
    squares = nn.functional.mse_loss(student, teacher)
    assert float(found) == pytest.approx(float(squares), abs=1e-6)


@pytest.mark.parametrize(
    ("blocks", "weights", "expected"),
    [
        (3, (), {0: 1.0, 1: 1.0, 2: 1.0}),
        (30, (500.0, 1000.0, 1000.0), {9: 500.0, 19: 1000.0, 29: 1000.0}),
        (4, (5.0,), {3: 5.0}),
        (2, (500.0, 1000.0, 1000.0), {0: 1500.0, 1: 1000.0}),
    ],
)
def test_weights_are_those_of_the_ends_of_equal_groups(
    blocks: int, weights: tuple[float, ...], expected: dict[int, float]
) -> None:
    assert nad.weighted_layers(blocks, weights) == expected


def test_the_power_is_applied_before_the_heads_are_summed() -> None:
    # [[2, 0], [1/2, 3/2]] and [[2, 0], [2, 0]]
    norms = math.sqrt(4 + 1 / 4 + 9 / 4), math.sqrt(8)
    expected = math.sqrt(sum((a / norms[0] - b / norms[1]) ** 2 for a, b in [(2, 2), (0, 0), (1 / 2, 2), (3 / 2, 0)]))
    assert float(attention_distance(STUDENT, TEACHER, BOTH_TOKENS, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    found = attention_distance(padded(STUDENT, 3, 0.3), padded(TEACHER, 3, 0.7), mask, power=2.0)
    assert float(found) == pytest.approx(BY_HAND, abs=1e-6)


def test_equal_maps_are_at_no_distance_and_their_gradient_is_finite() -> None:
    student = STUDENT.clone().requires_grad_()
    distance = attention_distance(student, STUDENT, BOTH_TOKENS, power=2.0)
    distance.sum().backward()
    assert float(distance.detach()) == 0
    assert torch.isfinite(student.grad).all()


def test_the_gradient_of_a_fractional_power_is_finite() -> None:
    student = STUDENT.clone().requires_grad_()  # holds zeros
    attention_distance(student, TEACHER, BOTH_TOKENS, power=1.5).sum().backward()
    assert torch.isfinite(student.grad).all()


# --- The objective --------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny: LanguageModel) -> Iterator[LanguageModel]:
    """Another model than `tiny`; within the test both keep their attention probabilities."""
    other = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    noisy(other.model, seed=1)
    with attention(tiny.model, "eager"), attention(other.model, "eager"):
        yield other


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows[10:14])  # of different length


@torch.no_grad()
def distance_by_hand(
    student: LanguageModel,
    teacher: LanguageModel,
    row: Row,
    power: float,
    weights: tuple[float, ...] = (1.0, 1.0),
    squared: bool = False,
) -> float:
    """Of one row alone, so without padding."""
    ids_1T = torch.tensor([[*row.prompt, *row.response]], device=student.model.device)
    layers = [lm.model(input_ids=ids_1T, output_attentions=True).attentions for lm in (student, teacher)]
    total = 0.0
    for weight, *pair in zip(weights, *layers, strict=True):
        maps = [attention_1HTT[0].double().pow(power).sum(0) for attention_1HTT in pair]
        length = float(torch.linalg.matrix_norm(maps[0] / maps[0].norm() - maps[1] / maps[1].norm()))
        total += weight * (length**2 / len(row) ** 2 if squared else length)
    return total


@torch.no_grad()
def loss_of(objective: nn.Module, lm: LanguageModel, rows: list[Row]) -> float:
    batch = Collator(lm.tokenizer.pad_token_id)([features(row) for row in rows])
    assert batch["attention_mask"].min() == 0, "rows of unequal length, or padding is not tested"
    count = torch.tensor(sum(len(row.response) for row in rows))
    device = lm.model.device
    return float(objective(**{k: v.to(device) for k, v in batch.items()}, num_items_in_batch=count)["loss"])


@pytest.mark.parametrize(("beta", "power"), [(0.0, 2.0), (1.0, 2.0), (3.0, 1.0)])
def test_the_loss_is_likelihood_plus_beta_times_the_mean_distance(
    tiny: LanguageModel, teacher: LanguageModel, rows: list[Row], beta: float, power: float
) -> None:
    config = nad.Config(training=FAST, attention_weight=beta, attention_power=power)
    likelihood = sum(nll_by_hand(tiny, row.prompt, row.response) for row in rows) / sum(len(r.response) for r in rows)
    distances = [distance_by_hand(tiny, teacher, row, power) for row in rows]
    assert min(distances) > 1e-4
    expected = likelihood + beta * sum(distances) / FAST.batch_size
    found = loss_of(nad.distillation(tiny.model, teacher.model, config), tiny, rows)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_published_loss_weighs_groups_of_layers(
    tiny: LanguageModel, teacher: LanguageModel, rows: list[Row]
) -> None:
    config = dataclasses.replace(nad.Config(recipe="published"), training=FAST)
    likelihood = sum(nll_by_hand(tiny, row.prompt, row.response) for row in rows) / sum(len(r.response) for r in rows)
    distances = [distance_by_hand(tiny, teacher, row, 2.0, weights=(1500.0, 1000.0), squared=True) for row in rows]
    expected = likelihood + sum(distances) / FAST.batch_size
    assert sum(distances) > 0.01
    found = loss_of(nad.distillation(tiny.model, teacher.model, config), tiny, rows)
    assert found == pytest.approx(expected, rel=1e-4)


def test_weights_below_zero_are_refused(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    with pytest.raises(UserError, match=r"^nad: layer_weights is \[1.0, -1.0\]; set numbers from 0 on$"):
        nad.check(tiny.tokenizer, CleanData(few_rows), nad.Config(layer_weights=(1.0, -1.0)))


def test_the_teacher_is_none_of_the_objectives_parameters(tiny: LanguageModel, teacher: LanguageModel) -> None:
    objective = nad.distillation(tiny.model, teacher.model, nad.Config())
    assert list(map(id, objective.parameters())) == list(map(id, tiny.model.parameters()))


def test_the_teacher_gets_no_gradient(tiny: LanguageModel, teacher: LanguageModel, rows: list[Row]) -> None:
    objective = nad.distillation(tiny.model, teacher.model, nad.Config(training=FAST))
    batch = Collator(tiny.tokenizer.pad_token_id)([features(row) for row in rows])
    device = tiny.model.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    objective(**batch, num_items_in_batch=torch.tensor(1.0))["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in tiny.model.parameters())


# --- The whole defense ----------------------------------------------------------------------------------------------

SLOW = dataclasses.replace(FAST, max_steps=1, learning_rate=1e-3)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, nn.Module, dict[str, Tensor]]]:
    """Student, teacher, and the teacher's weights, of each distillation when it begins."""
    seen: list[tuple[nn.Module, nn.Module, dict[str, Tensor]]] = []
    original = nad.distillation

    def distillation(student: Any, teacher: Any, config: nad.Config) -> nn.Module:
        seen.append((student, teacher, weights(teacher)))
        return original(student, teacher, config)

    monkeypatch.setattr(nad, "distillation", distillation)
    return seen


def test_the_teacher_is_the_victim_fine_tuned_and_stays_so(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, made: list[Any]
) -> None:
    other = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    expected = weights(sft.defend(other, CleanData(few_rows), sft.Config(training=SLOW), new_run()))
    nad.defend(tiny, CleanData(few_rows), nad.Config(teacher=SLOW, training=FAST), new_run())
    ((student, teacher, at_the_start),) = made
    assert student is tiny.model
    assert all(torch.equal(at_the_start[name], expected[name]) for name in expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(teacher).items())
    assert not teacher.training


def test_without_the_distance_it_is_fine_tuning(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    other = LanguageModel(copy.deepcopy(tiny.model), tiny.tokenizer)
    settings = dataclasses.replace(FAST, adam_epsilon=1e-2, learning_rate=1e-2)  # two attention kernels, one result
    expected = weights(sft.defend(other, CleanData(few_rows), sft.Config(training=settings), new_run()))
    config = nad.Config(teacher=SLOW, training=settings, attention_weight=0.0)
    for name, weight in weights(nad.defend(tiny, CleanData(few_rows), config, new_run())).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)


def test_the_students_attention_comes_closer_to_the_teachers(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, made: list[Any], rows: list[Row]
) -> None:
    start = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    far = dataclasses.replace(FAST, max_steps=10, learning_rate=1e-2)
    left = []
    for beta in (0.0, 100.0):
        tiny.model.load_state_dict(start)
        training = dataclasses.replace(FAST, max_steps=10, learning_rate=1e-3)
        config = nad.Config(teacher=far, training=training, attention_weight=beta)
        nad.defend(tiny, CleanData(few_rows), config, new_run())
        teacher = LanguageModel(made[-1][1], tiny.tokenizer)
        with attention(tiny.model, "eager"), attention(teacher.model, "eager"):
            left.append(sum(distance_by_hand(tiny, teacher, row, 2.0) for row in rows))
    assert left[1] < 0.9 * left[0]


def implementations(made: list[Any]) -> list[str]:
    return [model.config._attn_implementation for model in made[0][:2]]


def test_the_attention_kernels_are_those_of_before(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, made: list[Any]
) -> None:
    before = tiny.model.config._attn_implementation
    assert before != "eager"
    nad.defend(tiny, CleanData(few_rows), nad.Config(teacher=SLOW, training=SLOW), new_run())
    assert implementations(made) == [before, before]


def test_the_attention_kernels_are_those_of_before_after_an_error_too(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, made: list[Any]
) -> None:
    before = tiny.model.config._attn_implementation

    def fail_at_distillation(trainer: Any) -> Any:
        if made:
            assert implementations(made) == ["eager", "eager"]
            raise ZeroDivisionError
        return trainer

    run = dataclasses.replace(new_run(), prepare=fail_at_distillation)
    with pytest.raises(ZeroDivisionError):
        nad.defend(tiny, CleanData(few_rows), nad.Config(teacher=SLOW, training=SLOW), run)
    assert implementations(made) == [before, before]
