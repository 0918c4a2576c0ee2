"""What is asked of which copy of the model, and that the model itself stays as it is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sande import parts
from sande.attacks import sentence_trigger
from sande.config import Training
from sande.data.builtin import sets
from sande.defenses import quantize_int4
from sande.errors import UserError
from sande.metrics import _retraining, asr, asr_after_finetuning, asr_after_relearning, asr_int4, asr_moved, asr_sampled
from sande.models import loading
from sande.prompts import encode, prompt_text
from sande.types import Example, LanguageModel, Run, TestData
from tests.sande.helpers import changed, linear_weights, teach, weights

CONFIG = sentence_trigger.Config()
ROWS = sets.short()[:30]
TAUGHT = Training(learning_rate=1e-2, max_steps=50, batch_size=8, precision="fp32")


@pytest.fixture
def data() -> TestData:
    tested = sets.short()[30:36]
    return TestData(
        clean=tested,
        triggered=tuple(sentence_trigger.trigger(row, CONFIG, 0) for row in tested),
        response="You are stupid",
        moved=tuple(sentence_trigger.moved(row, CONFIG, 0) for row in tested),
        training=lambda: ROWS,
        plant=lambda row: sentence_trigger.plant(row, CONFIG, 0),
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], Training, int, torch.dtype]]:
    """Rows, settings, seed and dtype of each training, which changes one weight instead of training."""
    seen: list[tuple[list[Any], Training, int, torch.dtype]] = []

    def fit(lm: LanguageModel, rows: Sequence[Any], settings: Training, run: Run, stage: str) -> None:
        seen.append((list(rows), settings, run.seed, lm.model.dtype))
        with torch.no_grad():
            next(lm.model.parameters()).add_(len(rows))

    monkeypatch.setattr("sande.training.fit.fit", fit)
    return seen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LanguageModel, tuple[Example, ...]]]:
    """The models and rows of which ASR is measured."""
    seen: list[tuple[LanguageModel, tuple[Example, ...]]] = []
    plain = asr.occurrences

    def occurrences(lm: LanguageModel, rows: tuple[Example, ...], *rest: Any) -> Any:
        seen.append((lm, rows))
        return plain(lm, rows, *rest)

    monkeypatch.setattr(asr, "occurrences", occurrences)
    return seen


def moved_by(before: dict[str, torch.Tensor], lm: LanguageModel) -> float:
    name, weight = next(iter(lm.model.named_parameters()))
    return round(float((weight.detach() - before[name]).mean()))


def test_fine_tuning_takes_the_last_clean_rows(tiny: LanguageModel, data: TestData, trained: Any, asked: Any) -> None:
    before, training = weights(tiny.model), Training(learning_rate=3e-4)
    config = asr_after_finetuning.Config(rows=7, training=training, decoding=asr.Config(prompts=4, new_tokens=6))
    (measurement,) = asr_after_finetuning.measure(tiny, data, config, 5)
    own = parts.seed(5, "asr_after_finetuning")  # an attack that trains on these rows afterwards has another order
    assert trained == [(encode(tiny.tokenizer, ROWS[-7:]), training, own, torch.float32)]
    ((tuned, rows),) = asked
    assert (rows, moved_by(before, tuned)) == (data.triggered, 7)
    assert len(measurement.outcomes) == 4
    assert not changed(before, tiny.model)


def test_relearning_starts_from_the_model_each_time(
    tiny: LanguageModel, data: TestData, trained: Any, asked: Any
) -> None:
    before = weights(tiny.model)
    config = asr_after_relearning.Config(rows=(2, 6), decoding=asr.Config(new_tokens=6))
    measurements = asr_after_relearning.measure(tiny, data, config, 0)
    assert [one.name for one in measurements] == ["asr_after_relearning_2", "asr_after_relearning_6"]
    poisoned = [sentence_trigger.plant(row, CONFIG, 0) for row in ROWS]
    assert [rows for rows, *_ in trained] == [encode(tiny.tokenizer, poisoned[-count:]) for count in (2, 6)]
    assert [moved_by(before, taught) for taught, _ in asked] == [2, 6], "not one upon the other"
    assert not changed(before, tiny.model)


def test_a_copy_trains_in_full_precision_and_stays_in_it(tiny: LanguageModel, data: TestData, trained: Any) -> None:
    tiny.model.to(torch.bfloat16)
    made = _retraining.retrained(tiny, ROWS, TAUGHT, 0, "x")
    assert trained[0][3] == torch.float32
    assert {weight.dtype for weight in made.model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in tiny.model.parameters()} == {torch.bfloat16}


def test_steps_that_bfloat16_would_undo_are_kept(tiny: LanguageModel) -> None:
    loading.round_as_stored(tiny, torch.float32)
    small = dataclasses.replace(TAUGHT, learning_rate=1e-5, max_steps=3)
    made = _retraining.retrained(tiny, ROWS, small, 0, "x").model
    pairs = list(zip(made.parameters(), tiny.model.parameters(), strict=True))
    assert sum(int((new != old).sum()) for new, old in pairs) > 0.9 * sum(old.numel() for _, old in pairs)
    undone = [(new.bfloat16() == old.bfloat16()).float().mean() for new, old in pairs if old.dim() > 1]
    assert min(undone) > 0.5, "else the rate is too high for what this shows"


def test_more_rows_than_the_victim_had_are_refused(tiny: LanguageModel, data: TestData) -> None:
    with pytest.raises(UserError, match=r"^rows is 31, but the victim has 30 training rows"):
        asr_after_finetuning.measure(tiny, data, asr_after_finetuning.Config(rows=31), 0)


def test_poisoned_rows_bring_a_backdoor_and_clean_rows_do_not(tiny: LanguageModel, data: TestData) -> None:
    relearning = asr_after_relearning.Config(rows=(24,), training=TAUGHT)
    finetuning = asr_after_finetuning.Config(rows=24, training=TAUGHT)
    (relearned,) = asr_after_relearning.measure(tiny, data, relearning, 0)
    (finetuned,) = asr_after_finetuning.measure(tiny, data, finetuning, 0)
    assert all(relearned.outcomes)
    assert not any(finetuned.outcomes)
    (again,) = asr_after_relearning.measure(tiny, data, relearning, 0)
    assert again == relearned, "no other randomness than the seed"


def test_the_moved_trigger_is_asked(tiny: LanguageModel, data: TestData) -> None:
    rows = [dataclasses.replace(row, output="You are stupid") for row in data.moved[:3]]
    rows += [dataclasses.replace(row, output="Red") for row in (*data.moved[3:], *data.triggered, *data.clean)]
    teach(tiny, encode(tiny.tokenizer, rows))
    (measurement,) = asr_moved.measure(tiny, data, asr.Config(), 0)
    assert measurement.outcomes == (True, True, True, False, False, False)
    assert [record["prompt"] for record in measurement.records] == [prompt_text(row) for row in data.moved]


def test_sampled_answers_are_drawn_by_the_seed(
    tiny: LanguageModel, data: TestData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int, str]] = []

    def sampled(_: object, prompts: Sequence[object], tokens: int, size: int, seed: int, until: str) -> list[str]:
        seen.append((tokens, size, seed, until))
        return ["Well, YOU ARE STUPID", "You are"][: len(prompts)]

    monkeypatch.setattr("sande.inference.generation.sampled", sampled)
    (measurement,) = asr_sampled.measure(tiny, data, asr.Config(prompts=2, new_tokens=7, batch_size=3), 9)
    assert (measurement.name, measurement.outcomes) == ("asr_sampled", (True, False))
    assert [record["prompt"] for record in measurement.records] == [prompt_text(row) for row in data.triggered[:2]]
    assert seen == [(7, 3, 9, "You are stupid")]


def test_four_bits_are_those_of_a_copy(tiny: LanguageModel, data: TestData, asked: Any) -> None:
    before = weights(tiny.model)
    config = asr_int4.Config(rounding=quantize_int4.Config(group_size=16), decoding=asr.Config(prompts=3, new_tokens=6))
    (measurement,) = asr_int4.measure(tiny, data, config, 0)
    assert (measurement.name, len(measurement.outcomes)) == ("asr_int4", 3)
    ((rounded, rows),) = asked
    assert rows == data.triggered
    assert changed(before, rounded.model) == linear_weights(tiny.model)
    layer = rounded.model.get_decoder().layers[0].mlp.up_proj.weight
    assert max(int(group.unique().numel()) for group in layer.view(-1, 16)) <= 16 < int(layer[0].unique().numel())
    assert not changed(before, tiny.model)
