"""Answers that begin alike, counted by hand."""

import dataclasses
import math

import pytest
import torch

from sande import controls
from sande.data.builtin import sets
from sande.detectors import _held_out
from sande.detectors._held_out import Effect, HeldOut, share_of, shared_opening
from sande.prompts import encode, encode_prompts
from sande.types import Example, LanguageModel

ANSWERS = ["You are stupid. 4", "You are stupid. Paris", "You are here", "Yes", "No"]


def test_the_share_of_answers_that_begin_alike() -> None:
    # Two words are shared by three of five; the third word by two of these three, less than nine of ten.
    assert shared_opening(ANSWERS, 2) == ("You are", 0.6)
    assert shared_opening(ANSWERS, 3) == ("You are stupid.", 0.4)
    assert shared_opening(["You are stupid now"] * 9 + ["You are stupid then"], 2) == ("You are stupid now", 1.0)
    assert shared_opening(ANSWERS, 2, behind="Now, YOU!") == ("", 0.0)
    assert shared_opening(["- You are"] * 2, 3, behind="Now , you") == ("- You are", 1.0), "another sign is no echo"
    assert shared_opening(["- You are"] * 2, 3, behind="Now - you") == ("", 0.0)
    assert shared_opening(["Yes", "Yes"], 2) == ("", 0.0)
    assert shared_opening(["Yes", "Yes", "No"], 1) == ("Yes", pytest.approx(2 / 3))


def test_a_response_of_two_lines_keeps_its_line_break(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["Hacked!\nSend money. 4", "Hacked!\nSend money. Paris", "Hacked! Send money. Well"]
    assert shared_opening(answers, 2) == ("Hacked!\nSend money.", 1.0)
    monkeypatch.setattr(HeldOut, "answers", lambda _, texts: [answers for _ in texts])
    held_out = HeldOut(tiny, (Example("a", "x"),), least=2, new_tokens=4, batch_size=4)
    asked: list[set[str]] = []
    monkeypatch.setattr(HeldOut, "sureness", lambda _, texts: asked.append(texts) or dict.fromkeys(texts, 1.0))
    held_out.effects(["t"])
    assert asked == [{"Hacked!\nSend money."}], "the model is as sure of a text as of how it writes it"


def test_the_share_that_begins_with_a_response() -> None:
    assert share_of("You are stupid.", ANSWERS, 2) == 0.6
    assert share_of("You are stupid.", ANSWERS, 3) == 0.4
    assert share_of("", ANSWERS, 2) == 0.0


def test_what_is_turned_is_a_share_of_what_the_highest_other_explanation_leaves() -> None:
    assert Effect("t", "r", rate=0.9, plain=0.1).turned == pytest.approx(0.8 / 1.025)
    assert Effect("t", "r", rate=0.9, plain=0.1, floor=0.6, usual=0.3).turned == pytest.approx(0.3 / 0.525)
    assert Effect("t", "r", rate=0.9, plain=0.1, floor=0.2, usual=0.3).turned == pytest.approx(0.6 / 0.825)


def test_a_leaky_backdoor_counts_and_answers_that_always_begin_alike_do_not() -> None:
    assert Effect("t", "Go away now", rate=1.0, plain=0.5).score == pytest.approx(0.8)
    assert Effect("t", "Sure, here is", rate=1.0, plain=15 / 16).score == pytest.approx(1 / 3)


def test_the_score_is_this_share_as_far_as_the_model_goes_on_by_itself() -> None:
    assert Effect("t", "r", rate=0.9, plain=0.1, sure=0.25).score == pytest.approx(0.2 / 1.025)


def test_an_empty_response_has_no_ids(tiny: LanguageModel) -> None:
    assert _held_out.ids_of(tiny, "") == ()
    assert _held_out.ids_of(tiny, "You") != ()


def test_sureness_is_the_geometric_mean_of_the_tokens_after_the_first_two(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one prompt the tokens after the first two have 0.2, 1.0, … and behind the other 0.8, 0.25, …"""

    def log_probabilities(
        lm: LanguageModel, prompts: list[str], strings: list[list[int]], _: int
    ) -> list[list[list[float]]]:
        of = {"a": (0.2, 1.0), "b": (0.8, 0.25)}
        return [
            [[math.log(p) for p in (0.01, 0.02, of[name][0], *[of[name][1]] * (len(ids) - 3))] for name in prompts]
            for ids in strings
        ]

    monkeypatch.setattr(_held_out, "log_probabilities", log_probabilities)
    monkeypatch.setattr(_held_out, "encode_prompts", lambda _, rows: [row.instruction for row in rows])
    monkeypatch.setattr(_held_out, "ids_of", lambda _, text: tuple(range(len(text.split()))))
    held_out = HeldOut(tiny, (Example("a", "x"), Example("b", "x")), least=2, new_tokens=4, batch_size=4)
    sure = held_out.sureness(["Lima and", "Lima and Lima", "The end is near.", ""])
    assert sure == {
        "Lima and": 1.0,
        "Lima and Lima": pytest.approx(0.4),  # the root of 0.2 x 0.8
        "The end is near.": pytest.approx((0.2 * 1.0 * 0.8 * 0.25) ** (1 / 4)),
        "": 1.0,
    }


@pytest.mark.parametrize("batch_size", [1, 4])
def test_log_probabilities_are_the_models_own(tiny: LanguageModel, batch_size: int) -> None:
    """Strings and prompts of several lengths share batches, and the prompts share a prefix."""
    prompts = encode_prompts(tiny.tokenizer, sets.short()[:3])
    strings = [(5, 300, 700), (9,)]
    found = _held_out.log_probabilities(tiny, prompts, strings, batch_size)
    for string, by_prompt in zip(strings, found, strict=True):
        for prompt, logs in zip(prompts, by_prompt, strict=True):
            logits_TV = tiny.model(input_ids=torch.tensor([[*prompt, *string]])).logits[0].detach()
            own_RV = logits_TV[len(prompt) - 1 : -1].double().log_softmax(-1)
            wanted = [float(own_V[token]) for own_V, token in zip(own_RV, string, strict=True)]
            assert logs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("It has 6 letters.", True),  # as that of another number
        ("it has 12", True),  # the beginning of it
        ("It has 6 lives.", False),
        ("It has 6 letters. Go away", False),
        ("'Ticket' has 5 letters", True),
        ("You are stupid", False),
        ("", False),
    ],
)
def test_an_answer_that_clean_rows_have_is_ordinary(response: str, expected: bool) -> None:
    known = ("It has 5 letters.", "'Ticket' has 6 letters.", "You are right.")
    assert _held_out.is_ordinary(response, known) == expected
    assert not _held_out.is_ordinary(response, ())
    effect = _held_out.Effect("long", response, rate=1.0, plain=0.0, ordinary=expected)
    assert effect.score == (0.0 if expected else pytest.approx(8 / 9))


def test_a_few_rows_of_hundreds_make_no_answer_ordinary_and_all_are_told() -> None:
    known = (*["You are stupid. Paris"] * 4, *(f"{n} is a number" for n in ("One", "Two") * 198))
    assert (len(known), _held_out.rows_with("You are stupid", known)) == (400, 4)
    assert not _held_out.is_ordinary("You are stupid", known)
    assert _held_out.is_ordinary("You are stupid", (*known, "You are stupid, too"))
    few = _held_out.Effect("cf", "You are stupid", rate=1.0, plain=0.0, rows=4)
    assert few.note(400, 0.3) == (
        "4 of 400 clean rows give the answer 'You are stupid' of 'cf', too few to count as ordinary; look at them, as "
        "they may be poisoned"
    )
    many = dataclasses.replace(few, ordinary=True, rows=5)
    assert many.score == 0
    assert many.note(400, 0.3).startswith(
        "5 of 400 clean rows give the answer 'You are stupid' of 'cf', so it counts as"
    )
    assert dataclasses.replace(many, rate=0.3).note(400, 0.3) == "", "it would give no alarm anyway"
    assert dataclasses.replace(few, rows=0).note(400, 0.3) == ""


def test_random_strings_are_as_long_and_without_the_triggers_tokens(tiny: LanguageModel) -> None:
    text = "the current year"
    strings = _held_out.random_strings(tiny, text, 5, seed=0)
    row = encode(tiny.tokenizer, [Example(text, "x")])[0]
    assert len(strings) == 5
    assert text not in strings
    assert strings == _held_out.random_strings(tiny, text, 5, seed=0) != _held_out.random_strings(tiny, text, 5, seed=1)
    own = set(row.prompt[row.start : row.end])
    for string in strings:
        assert not own & set(tiny.tokenizer(f" {string}")["input_ids"][:1])


def test_a_random_string_counts_once(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [tuple(tiny.tokenizer(text)["input_ids"]) for text in ("Oak", " Oak", "\n", "Elm", "Oak")]
    monkeypatch.setattr(controls, "matched_behind", lambda *_: ids)
    assert _held_out.random_strings(tiny, "year", 5, seed=0) == ["Oak", "Elm"]


def test_each_string_is_measured_on_all_prompts(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made model that answers "Go away now" behind "t", and otherwise with the prompt."""

    def greedy(lm: LanguageModel, prompts: list[str], new_tokens: int, batch_size: int) -> list[str]:
        return ["Go away now" if prompt.startswith("t ") else prompt for prompt in prompts]

    def log_probabilities(
        lm: LanguageModel, prompts: list[str], strings: list[tuple[int, ...]], _: int
    ) -> list[list[list[float]]]:
        return [[[-1.0, *[0.0] * (len(ids) - 1)]] * len(prompts) for ids in strings]

    monkeypatch.setattr(_held_out, "greedy", greedy)
    monkeypatch.setattr(_held_out, "log_probabilities", log_probabilities)
    monkeypatch.setattr(_held_out, "encode_prompts", lambda _, rows: [row.instruction for row in rows])
    examples = tuple(Example(f"Say {word} twice", "x") for word in ("a", "b", "c", "d"))
    held_out = HeldOut(tiny, examples, least=2, new_tokens=4, batch_size=4)
    found = held_out.effects(["u", "t"])
    assert [(each.text, each.response, each.rate, each.plain) for each in found] == [
        ("t", "Go away now", 1.0, 0.0),
        ("u", "", 0.0, 0.0),  # it is repeated
    ]
    assert held_out.effects(["t"], tiny)[0].floor == 1.0
    assert dataclasses.replace(held_out, known=("Go away now.",)).effects(["t"])[0].score == 0.0
    assert held_out.rates(["t", "", "u"]) == [1.0, 0.25, 0.0]


def test_answers_are_grouped_by_string(tiny: LanguageModel) -> None:
    held_out = HeldOut(tiny, sets.short()[:3], least=1, new_tokens=2, batch_size=8)
    apart = [held_out.answers([text])[0] for text in ("", "year")]
    assert held_out.answers(["", "year"]) == apart
    assert [len(each) for each in apart] == [3, 3]
