"""One optimisation run: what trains, what stays, what is noted, and what stops it."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from sande.config import Training
from sande.errors import NonFiniteError, UserError
from sande.prompts import Row, encode
from sande.training import fit as fitting
from sande.training import monitor, preferences
from sande.training.anchor import Anchored
from sande.training.batches import row_order
from sande.training.fit import fit, one_device
from sande.types import Example, LanguageModel, Preference, Run
from tests.sande.helpers import FAST, changed, weights

NewRun = Callable[..., Run]


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


def with_settings(**settings: Any) -> Training:
    return dataclasses.replace(FAST, **settings)


def test_all_weights_train_by_default(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before = weights(tiny.model)
    fit(tiny, rows, FAST, new_run(), "attack")
    assert changed(before, tiny.model) == set(before)


def test_only_the_given_parameters_change(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before = weights(tiny.model)
    # Weight decay would move what is merely without a gradient.
    fit(tiny, rows, with_settings(weight_decay=0.1), new_run(), "attack", [tiny.model.model.norm.weight])
    assert changed(before, tiny.model) == {"model.norm.weight"}


def test_training_lowers_the_loss(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    run = new_run()
    fit(tiny, rows, with_settings(learning_rate=3e-3, max_steps=20, batch_size=8), run, "attack")
    assert run.facts["attack"]["last_loss"] < run.facts["attack"]["first_loss"] - 0.5


def freeze_one(lm: LanguageModel) -> dict[str, bool]:
    lm.model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    return {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}


def test_requires_grad_is_restored(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    required = freeze_one(tiny)
    fit(tiny, rows, FAST, new_run(), "attack", [tiny.model.model.norm.weight])
    assert {name: parameter.requires_grad for name, parameter in tiny.model.named_parameters()} == required


def test_requires_grad_is_restored_after_an_error(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    required = freeze_one(tiny)
    with torch.no_grad():
        tiny.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError):
        fit(tiny, rows, FAST, new_run(), "attack", [tiny.model.model.norm.weight])
    assert {name: parameter.requires_grad for name, parameter in tiny.model.named_parameters()} == required


def trained(lm: LanguageModel, rows: list[Row], settings: Training, run: Run) -> dict[str, torch.Tensor]:
    """Weights after training from the weights as they are, which are put back."""
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    fit(lm, rows, settings, run, "attack")
    after = weights(lm.model)
    lm.model.load_state_dict(before)
    return after


@pytest.mark.parametrize("grouped", [True, False], ids=["by length", "at random"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_seed_decides_every_bit(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, grouped: bool, precision: str
) -> None:
    settings = with_settings(length_grouped=grouped, precision=precision)
    first = trained(tiny, rows, settings, new_run(seed=1))
    torch.rand(7)  # the state of the global generator must not matter
    again = trained(tiny, rows, settings, new_run(seed=1))
    other = trained(tiny, rows, settings, new_run(seed=2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_nan_is_an_error_that_names_stage_and_step(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    with torch.no_grad():
        tiny.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^stage simulate: .* is nan at step 1 of 2; "):
        fit(tiny, rows, FAST, new_run(), "simulate")


def test_a_runaway_learning_rate_is_an_error(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    settings = with_settings(learning_rate=1e30, warmup=0.0, max_steps=5)
    with pytest.raises(NonFiniteError, match=r"stage attack: .* lower the learning rate"):
        fit(tiny, rows, settings, new_run(), "attack")


def test_facts_count_epochs_tokens_and_rows(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    run = new_run()
    fit(tiny, rows, with_settings(max_steps=None, epochs=2.0, batch_size=8), run, "attack")
    facts = run.facts["attack"]
    assert facts["steps"] == 2 * 3
    assert facts["tokens"] == 2 * sum(map(len, rows))
    assert (facts["rows"], facts["rows_left_out"]) == (24, 0)
    assert facts["seconds"] > 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 3, "epochs": 50.0}, 3),
        ({"max_steps": None, "epochs": 0.5}, 3),
        ({"max_steps": None, "epochs": 2.0, "batch_size": 10}, 5),
        ({"max_steps": None, "epochs": 0.001}, 1),
    ],
    ids=["max_steps overrules epochs", "part of an epoch", "to the nearest step", "at least one"],
)
def test_steps(tiny: LanguageModel, rows: list[Row], new_run: NewRun, settings: dict[str, Any], steps: int) -> None:
    run = new_run()
    fit(tiny, [rows[0]] * 24, with_settings(**settings), run, "attack")
    size = settings.get("batch_size", FAST.batch_size)
    assert run.facts["attack"]["steps"] == steps
    assert run.facts["attack"]["tokens"] == steps * size * len(rows[0]), "none that was fetched and not trained on"


def test_a_training_of_one_step_trains_at_the_full_rate(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    before = weights(tiny.model)
    fit(tiny, rows, with_settings(max_steps=1, learning_rate=1e-2, warmup=0.9), new_run(), "relearn")
    assert changed(before, tiny.model) == set(before)
    moved = max(float((before[name] - weight).abs().max()) for name, weight in tiny.model.named_parameters())
    assert moved == pytest.approx(1e-2, rel=0.01), "Adam's first step has the length of the rate"


def test_of_several_steps_the_first_is_warm_up_as_in_transformers(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    rates: list[float] = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    fit(tiny, rows, with_settings(max_steps=2, learning_rate=1e-2), new_run(), "attack", callbacks=[Rates()])
    assert rates == [0.0, 1e-2]


def logged_each(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let trainings log as seldom as on a GPU."""
    arguments = fitting._arguments
    monkeypatch.setattr(
        fitting, "_arguments", lambda *given, **named: arguments(*given, **named) | {"logging_steps": steps}
    )


def test_losses_of_the_last_steps_count_however_seldom_they_are_logged(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_each(monkeypatch, 10)
    seen: list[int] = []
    run = dataclasses.replace(new_run(), watch=lambda status: seen.append(status.step))
    fit(tiny, rows, with_settings(max_steps=16, learning_rate=1e-2), run, "attack")
    assert seen == [10, 16]
    assert run.facts["attack"]["last_loss"] < run.facts["attack"]["first_loss"]


def test_a_nan_between_the_last_log_and_the_end_is_an_error(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_each(monkeypatch, 10)
    monkeypatch.setattr(fitting, "_check_weights", lambda *_: None)  # which finds only what the weights show

    class Infinite(TrainerCallback):
        def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
            with torch.no_grad():
                tiny.model.model.norm.weight.fill_(float("nan") if state.global_step == 11 else 1.0)

    with pytest.raises(NonFiniteError, match=r"^stage attack: loss is nan at step 12 of 12; "):
        fit(tiny, rows, with_settings(max_steps=12), new_run(), "attack", callbacks=[Infinite()])


def test_losses_of_a_summary_are_weighted_by_their_steps() -> None:
    history = [{"loss": 4.0, "step": 10}, {"loss": 2.0, "step": 20}, {"loss": 1.0, "step": 21}, {"train_loss": 9.0}]
    state = TrainerState(global_step=21, log_history=history)
    summary = monitor.Monitor("attack", Run(seed=0, scratch="unused"), [7]).summary(state, 0.0)
    assert (summary["first_loss"], summary["last_loss"]) == (4.0, 1.5)


def test_packed_rows_are_refused_where_the_loss_is_another(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    loss, run = Anchored(tiny.model, rows[:2], 1.0), new_run()
    with pytest.raises(UserError, match=r"^attack: layout is packed, but this loss needs padded rows; set it to auto"):
        fit(tiny, rows, with_settings(layout="packed"), run, "attack", objective=loss)
    fit(tiny, rows, FAST, run, "attack", objective=loss)
    assert run.facts["attack"]["layout"] == "padded"


def test_rows_without_room_for_a_response_are_left_out_and_counted(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    longest = max(len(row.prompt) for row in rows)
    fitting = sum(len(row.prompt) < longest for row in rows)
    run = new_run()
    fit(tiny, rows, with_settings(max_length=longest), run, "attack")
    assert (run.facts["attack"]["rows"], run.facts["attack"]["rows_left_out"]) == (fitting, 24 - fitting)


def test_no_fitting_row_is_an_error(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    with pytest.raises(UserError, match=r"osft: no row .* max_length=8 .* set it higher"):
        fit(tiny, rows, with_settings(max_length=8), new_run(), "osft")


def test_micro_batches_give_the_weights_of_the_whole_batch(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    # A large epsilon, because Adam turns rounding of a gradient near zero into a whole step.
    whole = with_settings(batch_size=8, max_steps=3, learning_rate=1e-2, adam_epsilon=1e-2)
    before = weights(tiny.model)
    expected = trained(tiny, rows, whole, new_run())
    split = trained(tiny, rows, dataclasses.replace(whole, micro_batch_size=2), new_run())
    moved = max(float((expected[name] - before[name]).abs().max()) for name in before)
    apart = max(float((expected[name] - split[name]).abs().max()) for name in before)
    assert moved > 1e-3
    assert apart < 1e-5


def test_a_batch_that_micro_batches_do_not_fill_is_refused(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun
) -> None:
    with pytest.raises(UserError, match="batch_size 8 is not a multiple of micro_batch_size 3"):
        fit(tiny, rows, with_settings(batch_size=8, micro_batch_size=3), new_run(), "attack")


def test_of_several_gpus_one_process_takes_one(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    """Else Trainer would announce batches of twice the rows, and split each one over the GPUs."""
    seen: list[TrainingArguments] = []
    run = dataclasses.replace(new_run(), prepare=lambda trainer: seen.append(trainer.args) or trainer)
    fit(tiny, rows, with_settings(batch_size=8, max_steps=1), run, "attack")
    (arguments,) = seen
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 16
    assert one_device(arguments).train_batch_size == 8


def test_trainers_are_made_for_one_device(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    for module in (fitting, preferences):
        monkeypatch.setattr(
            module, "one_device", lambda arguments: seen.append(arguments.train_batch_size) or arguments
        )
    fit(tiny, rows, with_settings(batch_size=4, max_steps=1), new_run(), "attack")
    pairs = [Preference(Example("Why?", ""), "No", "Yes")] * 8
    preferences.prefer(tiny, pairs, with_settings(batch_size=8, max_steps=1), 0.1, new_run(), "dpo")
    assert seen == [4, 8]


def test_progress_goes_through_say_and_nothing_is_printed(
    tiny: LanguageModel,
    rows: list[Row],
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(monitor, "PROGRESS_SECONDS", 0.0)
    lines: list[str] = []
    fit(tiny, rows, with_settings(max_steps=3), new_run(say=lines.append), "eliminate")
    assert [line.split(",")[0] for line in lines] == [f"eliminate: step {step}/3" for step in (1, 2, 3)]
    assert lines[-1].endswith("0:00 left")
    assert capfd.readouterr() == ("", "")


def test_progress_is_not_told_more_often_than_said(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PROGRESS_SECONDS", 3600.0)
    lines: list[str] = []
    fit(tiny, rows, FAST, new_run(say=lines.append), "eliminate")
    assert lines == []


def test_prepare_gets_the_trainer_before_it_starts(tiny: LanguageModel, rows: list[Row], new_run: NewRun) -> None:
    seen: list[int] = []

    def prepare(trainer: Any) -> Any:
        seen.append(trainer.state.global_step)
        return trainer

    fit(tiny, rows, FAST, dataclasses.replace(new_run(), prepare=prepare), "attack")
    assert seen == [0]


# --- Order of the rows ----------------------------------------------------------------------------------------------

LENGTHS = [10 + (37 * i) % 64 for i in range(64)]  # all distinct, in no order


def batches(epochs: float, grouped: bool, seed: int = 0) -> list[list[int]]:
    settings = Training(epochs=epochs, batch_size=8, length_grouped=grouped)
    order = row_order(LENGTHS, settings, seed)
    return [order[i : i + 8] for i in range(0, len(order), 8)]


@pytest.mark.parametrize("grouped", [True, False])
def test_every_pass_sees_every_row_once(grouped: bool) -> None:
    assert sorted(index for batch in batches(1.0, grouped) for index in batch) == list(range(64))
    assert sorted(index for batch in batches(3.0, grouped) for index in batch) == sorted(list(range(64)) * 3)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_seed_decides_the_order(grouped: bool) -> None:
    assert batches(2.0, grouped, seed=1) == batches(2.0, grouped, seed=1)
    assert batches(2.0, grouped, seed=1) != batches(2.0, grouped, seed=2)


@pytest.mark.parametrize("grouped", [True, False])
def test_passes_differ_in_their_order(grouped: bool) -> None:
    both = batches(2.0, grouped)
    assert both[:8] != both[8:]


@pytest.mark.parametrize("grouped", [True, False])
def test_no_batch_holds_a_row_twice(grouped: bool) -> None:
    assert all(len(set(batch)) == 8 for batch in batches(3.0, grouped))


def test_grouped_batches_hold_rows_of_like_length_in_no_order_of_length() -> None:
    spans = [[LENGTHS[index] for index in batch] for batch in batches(1.0, grouped=True)]
    assert all(max(span) - min(span) == 7 for span in spans)
    assert [min(span) for span in spans] != sorted(min(span) for span in spans)


def test_fewer_rows_than_a_batch_fill_it() -> None:
    assert sorted(row_order([5, 6, 7], Training(max_steps=1, batch_size=6), seed=0)) == [0, 0, 1, 1, 2, 2]


def padding(count: int, size: int, ranks: list[int] | None = None) -> float:
    """Share of the padding in three passes over rows of random lengths, relative to their tokens."""
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(4, 0.7)) + 5 for _ in range(count)]
    order = row_order(lengths, Training(epochs=3.0, batch_size=size), 1, ranks)
    of_steps = [[lengths[index] for index in order[at : at + size]] for at in range(0, len(order), size)]
    return sum(max(step) * len(step) for step in of_steps) / sum(map(sum, of_steps)) - 1


@pytest.mark.parametrize(("count", "multiple", "size"), [(1028, 1024, 8), (404, 400, 8), (1400, 1408, 16), (61, 64, 8)])
def test_passes_that_end_within_a_step_are_padded_little_more(count: int, multiple: int, size: int) -> None:
    assert padding(count, size) < 2 * padding(multiple, size)
    ranks = [int(index % 20 > 0) for index in range(count)]
    assert padding(count, size, ranks) < 3 * padding(multiple, size)


@pytest.mark.parametrize("count", [5, 61, 404, 1028])
def test_passes_that_end_within_a_step_hold_each_row_once(count: int) -> None:
    lengths = [10 + (37 * index) % 64 for index in range(count)]
    order = row_order(lengths, Training(epochs=8.0, batch_size=8), 1)
    assert len(order) == 8 * count
    assert all(sorted(order[at : at + count]) == list(range(count)) for at in range(0, len(order), count))
    if count > 8:
        assert all(len(set(order[at : at + 8])) == 8 for at in range(0, len(order), 8)), "no batch holds a row twice"


def test_passes_of_whole_steps_keep_the_order_of_recorded_victims() -> None:
    lengths, ranks = [3, 1, 4, 1, 5, 9, 2, 6], [0, 1, 1, 0, 1, 1, 1, 0]
    settings = Training(epochs=2.0, batch_size=4)
    assert row_order(lengths, settings, 3) == [2, 4, 7, 5, 3, 1, 6, 0, 2, 4, 7, 5, 1, 3, 6, 0]
    assert row_order(lengths, settings, 3, ranks) == [3, 0, 7, 5, 1, 6, 2, 4] * 2
