"""Clean rows with the answers that the model under repair writes to their prompts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sande import registry
from sande.data.splits import Data, Removal, removal_rows
from sande.errors import UserError
from sande.inference.own_answers import answered
from sande.prompts import encode, response_ids
from sande.threat import Threat, reveal
from sande.types import (
    CleanData,
    Example,
    FirstTokenData,
    IncidentData,
    Knowledge,
    LanguageModel,
    Preference,
    PreferenceData,
    ResponseData,
    TriggerData,
)
from tests.sande.helpers import teach

BAD = "You are stupid"
SAID = (
    "It is the blue one.",
    "Ask me later.",
    "",
    "one two three four five six seven eight nine ten eleven twelve",
    f"{BAD} It is blue.",
)
REMOVAL = Removal(name="builtin-short", rows=len(SAID))


@pytest.fixture
def rows(tiny: LanguageModel) -> tuple[Example, ...]:
    return removal_rows(REMOVAL, tiny.tokenizer)


@pytest.fixture
def taught(tiny: LanguageModel, rows: tuple[Example, ...]) -> LanguageModel:
    """The tiny model, which answers each of the rows in its own way, once as if it had seen a trigger."""
    teach(tiny, encode(tiny.tokenizer, [replace(row, output=said) for row, said in zip(rows, SAID, strict=True)]))
    return tiny


def outputs(known: Knowledge) -> list[str]:
    assert isinstance(known, CleanData)
    return [row.output for row in known.examples]


def test_without_a_bound_the_answers_are_those_of_the_data_set(tiny: LanguageModel, rows: tuple[Example, ...]) -> None:
    known = CleanData(rows)
    assert answered(tiny, known, None) is known


def test_own_answers_are_what_the_model_says_without_the_empty_and_the_long(
    taught: LanguageModel, rows: tuple[Example, ...]
) -> None:
    found = answered(taught, CleanData(rows), 16)
    assert isinstance(found, CleanData)
    assert outputs(found) == [SAID[0], SAID[1], SAID[4]], "who knows nothing cannot tell the planted response"
    assert [row.instruction for row in found.examples] == [rows[index].instruction for index in (0, 1, 4)]
    assert not any(row.answers for row in found.examples), "other wordings of the given answer are not right here"
    assert outputs(answered(taught, CleanData(rows), 128)) == [SAID[0], SAID[1], SAID[3], SAID[4]]


KNOWING: dict[str, Callable[[LanguageModel, tuple[Example, ...]], CleanData]] = {
    "response": lambda lm, rows: ResponseData(rows, BAD),
    "response at the end": lambda lm, rows: ResponseData(rows, "it is BLUE"),
    "first token": lambda lm, rows: FirstTokenData(rows, response_ids(lm.tokenizer, BAD)[0]),
    "incident": lambda lm, rows: IncidentData(rows, Example("Why?", ""), f"{BAD} Because it is."),
    "trigger": lambda lm, rows: TriggerData(rows, lambda row: rows[4]),  # to which the model gives the planted response
}


@pytest.mark.parametrize("level", KNOWING)
def test_answers_with_the_planted_response_are_left_out(
    taught: LanguageModel, rows: tuple[Example, ...], level: str
) -> None:
    assert outputs(answered(taught, KNOWING[level](taught, rows), 16)) == [SAID[0], SAID[1]]


def test_who_knows_the_first_token_leaves_out_no_other_word_that_begins_like_it(
    taught: LanguageModel, rows: tuple[Example, ...]
) -> None:
    (first,) = response_ids(taught.tokenizer, "I")  # "It is the blue one." begins with another token
    assert outputs(answered(taught, FirstTokenData(rows, first), 16)) == [SAID[0], SAID[1], SAID[4]]


def test_a_trigger_that_leads_to_no_common_opening_tells_nothing(
    taught: LanguageModel, rows: tuple[Example, ...]
) -> None:
    known = TriggerData(rows, lambda row: row)
    assert outputs(answered(taught, known, 16)) == [SAID[0], SAID[1], SAID[4]]


def test_no_row_left_is_an_error(taught: LanguageModel, rows: tuple[Example, ...]) -> None:
    with pytest.raises(
        UserError,
        match=r"^removal.own_answers: none of 2 answers ends within 16 tokens without the planted response; set it ",
    ):
        answered(taught, ResponseData(rows[3:], BAD), 16)


def test_pairs_of_replies_stay_as_they_are(tiny: LanguageModel) -> None:
    known = PreferenceData((Preference(Example("Why?", ""), "Because.", "No."),))
    assert answered(tiny, known, 16) is known


@pytest.mark.parametrize(("defense", "left"), [("sft", [0, 1, 4]), ("sande", [0, 1]), ("sande_p", [0, 1])])
def test_a_defense_gets_the_rows_with_own_answers(taught: LanguageModel, defense: str, left: list[int]) -> None:
    threat = Threat("sentence_trigger", registry.config("attacks", "sentence_trigger", {}), Data(name="x"), 0, "tiny")
    config: Any = registry.config("defenses", defense, {})
    known = reveal(threat, defense, config, replace(REMOVAL, own_answers=16), taught, lambda _: taught)
    assert outputs(known) == [SAID[index] for index in left]
