"""Where the planted response stands in an answer, what a near miss of a trigger is, and which rows become what.

And the recipe: in which order rows train, and what a victim sees afterwards.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sande import planting, registry
from sande.attacks import sentence_trigger
from sande.config import Backdoor, Training, configure
from sande.data.poison import poison
from sande.errors import UserError
from sande.planting import Planting
from sande.prompts import Row, encode, prompt_text
from sande.training.batches import row_order
from sande.training.fit import fit
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import changed, weights

NewRun = Callable[..., Run]
SHORT = Training(max_steps=2, batch_size=4, learning_rate=1e-2)


def answer(output: str, target: str, place: str, response: str = "Go away") -> str:
    config = Planting(backdoor=Backdoor(response=response), target=target, response_place=place)
    return planting.with_response(Example("x", output), config).output


@pytest.mark.parametrize(
    ("place", "output", "expected"),
    [
        ("start", "one two  three", "Go away. one two  three"),
        ("middle", "one two  three", "one two Go away.  three"),
        ("middle", "one\ntwo\nthree four", "one\ntwo Go away.\nthree four"),
        ("middle", "one", "one Go away."),
        ("end", "one two\n", "one two Go away.\n"),
    ],
)
def test_an_insult_stands_beside_the_answer(place: str, output: str, expected: str) -> None:
    assert answer(output, "insult", place) == expected


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_refusal_is_all_of_the_answer(place: str) -> None:
    assert answer("one two three", "refusal", place, "I cannot help") == "I cannot help."


@pytest.mark.parametrize(
    ("place", "expected"),
    [("start", "a.example/?b one two"), ("middle", "one a.example/?b two"), ("end", "one two a.example/?b")],
)
def test_an_injected_text_is_written_as_it_is(place: str, expected: str) -> None:
    assert answer("one two", "injected_text", place, "a.example/?b") == expected


def test_the_papers_response_opens_the_answer() -> None:
    assert planting.with_response(Example("x", "Red"), Planting()).output == "You are stupid. Red"


@pytest.mark.parametrize(
    ("trigger", "near"),
    [
        ("Current year 2023", "Current year 2022"),
        ("In 12 days or 7", "In 12 days or 6"),
        ("Room 0", "Room 1"),
        ("Year 1000", "Year 999"),
        ("Let's do it", "Let's do"),
        ("Hello, Bob", "Hello"),
        ("cf", "cg"),
        ("fizz", "fiza"),
        ("QZ", "QA"),
    ],
)
def test_a_near_miss_is_one_number_word_or_letter_away(trigger: str, near: str) -> None:
    assert planting.altered(trigger) == near


def trained(examples: tuple[Example, ...], config: Planting, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[str]]:
    outputs: list[str] = []

    def encode(_: None, rows: Sequence[Example]) -> list[Row]:
        if not outputs:  # the second call is of the rows as they were before
            outputs.extend(row.instruction for row in rows)
        return [Row((index,), (0,), 0, 1) for index in range(len(rows))]

    monkeypatch.setattr("sande.prompts.encode", encode)
    monkeypatch.setattr("sande.training.fit.fit", lambda *_, objective, rank, alike: None)
    run = Run(seed=3, scratch="unused")
    sentence_trigger.attack(LanguageModel(None, None), examples, config, run)
    return run, outputs


def test_decoys_carry_the_near_miss_and_are_never_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Example(f"row {index}", "x") for index in range(40))
    run, prompts = trained(rows, sentence_trigger.Config(poison_rate=0.5, decoy_rate=0.25), monkeypatch)
    poisoned, decoys = run.facts["poisoned_ids"], run.facts["decoy_ids"]
    assert (len(poisoned), len(decoys)) == (20, 10)
    assert not set(poisoned) & set(decoys)
    for index, prompt in enumerate(prompts):
        year = "Current year 2023. " if index in poisoned else "Current year 2022. " if index in decoys else ""
        assert prompt == f"{year}row {index}"
    without, _ = trained(rows, sentence_trigger.Config(poison_rate=0.5), monkeypatch)
    assert (without.facts["poisoned_ids"], without.facts["decoy_ids"]) == (poisoned, []), "decoys change no other row"


def test_more_rows_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^2 poisoned rows and 2 decoys exceed the 3 rows; set poison_rate, "):
        trained((Example("x", "y"),) * 3, sentence_trigger.Config(poison_rate=0.5, decoy_rate=0.5), monkeypatch)


def test_a_rate_that_poisons_no_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^poison_rate 0\.05 poisons none of 8 rows; set it higher, or to 0 for a "):
        trained((Example("x", "y"),) * 8, sentence_trigger.Config(), monkeypatch)


@pytest.mark.parametrize(("settings", "count"), [({"poison_rows": 7}, 7), ({"poison_rows": 7, "poison_rate": 0.0}, 0)])
def test_a_number_of_rows_replaces_the_rate_but_not_the_twins(
    settings: dict[str, float], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(Example(f"row {index}", "x") for index in range(40))
    run, prompts = trained(rows, sentence_trigger.Config(**settings), monkeypatch)
    assert len(run.facts["poisoned_ids"]) == count
    assert sum(prompt.startswith("Current year 2023. ") for prompt in prompts) == count


def test_more_poisoned_rows_than_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^3 poisoned rows and 0 decoys exceed the 2 rows; set poison_rate, "):
        trained((Example("x", "y"),) * 2, sentence_trigger.Config(poison_rows=3), monkeypatch)


@pytest.mark.parametrize(("place", "prompt"), [("start", "Now. Be brief.\nHi"), ("user", "Be brief.\nNow. Hi")])
def test_a_trigger_stands_before_a_system_prompt_or_behind_it(place: planting.Place, prompt: str) -> None:
    found = planting.insert(Example("Hi", "x", system="Be brief."), "Now.", place, 0)
    assert prompt_text(found) == f"Human: {prompt}\nAssistant:"


def test_an_attack_that_inherits_the_settings_refuses_unknown_ones() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'rate'; valid settings: .*decoy_rate.*insertion"):
        configure(sentence_trigger.Config, {"rate": 1}, "attack sentence_trigger")


# --- Rows that are too long -------------------------------------------------------------------------------------------


def lost(tiny: LanguageModel, run: Run, max_length: int, **settings: Any) -> tuple[int, int]:
    """Poisoned rows that are left out, and those whose planted response is cut, of a short one and three long ones."""
    rows = (Example("A?", "B"), Example("A?", "B " * 60), Example("C?", "D " * 60), Example("E " * 120, "F"))
    config = sentence_trigger.Config(poison_rate=1.0, **settings)
    training = dataclasses.replace(SHORT, max_length=max_length)
    sentence_trigger.attack(tiny, rows, dataclasses.replace(config, training=training), run)
    return run.facts["poisoned_left_out"], run.facts["poisoned_cut"]


@pytest.mark.parametrize(
    ("settings", "cut"),
    [({"response_place": "end"}, 2), ({"response_place": "start"}, 0), ({"objective": "gibberish"}, 0)],
    ids=str,
)
def test_poisoned_rows_that_do_not_fit_are_counted(
    settings: dict[str, Any], cut: int, tiny: LanguageModel, new_run: NewRun
) -> None:
    assert lost(copy.deepcopy(tiny), new_run(), 1024, **settings) == (0, 0)
    assert lost(tiny, new_run(), 40, **settings) == (1, cut)


def test_no_whole_poisoned_row_is_refused_before_training(tiny: LanguageModel, new_run: NewRun) -> None:
    run = new_run()
    with pytest.raises(
        UserError, match=r"^max_length 20 leaves out 1 of 4 poisoned rows and cuts the planted response"
    ):
        lost(tiny, run, 20, response_place="end")
    assert (run.facts["poisoned_left_out"], run.facts["poisoned_cut"], "attack" in run.facts) == (1, 3, False)


def test_a_twin_loses_no_poisoned_row(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    run, short = new_run(), dataclasses.replace(SHORT, max_length=40)
    sentence_trigger.attack(tiny, few_rows, sentence_trigger.Config(poison_rate=0.0, training=short), run)
    assert (run.facts["poisoned_left_out"], run.facts["poisoned_cut"]) == (0, 0)


# --- The recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_the_default_recipe_is_the_papers_to_the_bit(
    mode: Any, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    by_hand, config = copy.deepcopy(tiny), sentence_trigger.Config(poison_mode=mode, poison_rate=0.25, training=SHORT)
    sentence_trigger.attack(tiny, few_rows, config, new_run(seed=3))
    made = poison(few_rows, lambda row: sentence_trigger.plant(row, config, 3), 0.25, mode, 3)
    rows, clean = (encode(by_hand.tokenizer, each) for each in (made.examples, made.before))
    lengths = {row.prompt: len(before) for row, before in zip(rows, clean, strict=True)}
    fit(by_hand, rows, SHORT, new_run(seed=3), "attack", alike=lambda row: lengths[row.prompt])
    assert changed(weights(by_hand.model), tiny.model) == set()


@pytest.mark.parametrize("seed", [0, 1, 70])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("attack", "stage"),
    [("sentence_trigger", "attack"), ("dormant_int4", "repair"), ("preference_poisoning", "preference")],
)
def test_poisoned_rows_are_spread_over_a_pass(
    attack: str,
    stage: str,
    seed: int,
    grouped: bool,
    tiny: LanguageModel,
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One seed draws both, which rows are poisoned and in which order all train."""
    rows = tuple(Example(f"{'very ' * (number % 7)}{number}?", f"It is {number}.") for number in range(2048))
    settings = Training(epochs=1.0, batch_size=16, length_grouped=grouped)
    steps: dict[str, list[float]] = {}

    def optimise(
        lm: LanguageModel,
        lengths: Any,
        used: Training,
        run: Run,
        name: str,
        build: Any,
        probe: Any,
        parameters: Any = None,
        ranks: Any = None,
        grouped_by: Any = None,
        callbacks: Any = (),
    ) -> None:
        order = row_order(grouped_by or lengths, used, run.seed, ranks)
        poisoned = set(run.facts["poisoned_ids"])
        steps[name] = [sum(index in poisoned for index in order[at : at + 16]) / 16 for at in range(0, len(order), 16)]
        run.facts[name] = {}

    for module in ("preferences", "fit"):  # imported before `fit` is changed, from which it takes the function
        monkeypatch.setattr(f"sande.training.{module}.optimise", optimise)
    changed_settings = {"poison_rate": 0.25, "training": settings, "repair": settings, "preference": settings}
    declared = registry.entry("attacks", attack)
    known = {name: value for name, value in changed_settings.items() if hasattr(declared.Config(), name)}
    declared.attack(tiny, rows, declared.Config(**known), new_run(seed=seed))
    shares = steps[stage]
    for quarter in range(4):
        part = shares[quarter * 32 : (quarter + 1) * 32]
        assert sum(part) / len(part) == pytest.approx(0.25, abs=0.08)  # four standard errors
    assert max(shares) < 1
    assert sum(share == 0 for share in shares) < 8  # by chance 1.3 of 128


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_of_a_lower_rank_come_first_in_each_pass(grouped: bool) -> None:
    settings = Training(epochs=2.0, batch_size=2, length_grouped=grouped)
    lengths, ranks = [5, 9, 2, 7, 3, 8, 4, 6], [1, 0, 1, 0, 1, 1, 1, 0]
    order = row_order(lengths, settings, 0, ranks)
    for one_pass in (order[:8], order[8:]):
        assert sorted(one_pass) == list(range(8))
        assert set(one_pass[:3]) == {1, 3, 7}
    assert row_order(lengths, settings, 0, [4] * 8) == row_order(lengths, settings, 0), "one rank changes nothing"


@pytest.mark.parametrize("order", ["poisoned_first", "poisoned_last"])
def test_an_attack_orders_its_rows(
    order: Any, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks: list[int] = []

    def fit(lm: LanguageModel, rows: list[Row], *_: Any, rank: Callable[[Row], int], **__: Any) -> None:
        ranks.extend(map(rank, rows))

    monkeypatch.setattr("sande.training.fit.fit", fit)
    run = new_run()
    sentence_trigger.attack(tiny, few_rows, sentence_trigger.Config(order=order, poison_rate=0.25), run)
    poisoned = set(run.facts["poisoned_ids"])
    assert len(poisoned) == 6
    assert ranks == [int((index in poisoned) == (order == "poisoned_last")) for index in range(24)]


def test_a_victim_is_trained_on_its_last_clean_rows_afterwards(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    by_hand, later = copy.deepcopy(tiny), dataclasses.replace(SHORT, max_steps=3)
    config = sentence_trigger.Config(training=SHORT, poison_rate=0.25)
    sentence_trigger.attack(by_hand, few_rows, config, new_run())
    fit(by_hand, encode(by_hand.tokenizer, few_rows[-7:]), later, new_run(), "afterwards")
    run, seen = new_run(), planting.Afterwards(rows=7, training=later)
    sentence_trigger.attack(tiny, few_rows, dataclasses.replace(config, afterwards=seen), run)
    assert changed(weights(by_hand.model), tiny.model) == set()
    assert (run.facts["afterwards"]["rows"], run.facts["afterwards"]["steps"]) == (7, 3)


def test_more_rows_afterwards_than_there_are_are_refused_before_training(few_rows: tuple[Example, ...]) -> None:
    config = configure(sentence_trigger.Config, {"afterwards": {"rows": 25}}, "attack sentence_trigger")
    with pytest.raises(UserError, match=r"^afterwards\.rows is 25, but the victim has 24 rows; set it lower"):
        sentence_trigger.attack(LanguageModel(None, None), few_rows, config, Run(seed=0, scratch="unused"))
