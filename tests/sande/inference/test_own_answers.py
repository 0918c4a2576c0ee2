"""Clean rows with the answers that the model under repair writes to their prompts."""

from dataclasses import replace

import pytest

from sande import registry
from sande.data import datasets
from sande.data.splits import Data, Removal, removal_rows
from sande.errors import UserError
from sande.inference.own_answers import clean_rows
from sande.prompts import encode
from sande.threat import Threat, reveal
from sande.types import LanguageModel, TriggerData
from tests.sande.helpers import teach

ROWS = Removal(name="builtin-short", rows=4)
OWN = replace(ROWS, own_answers=16)
SAID = ("It is the blue one.", "Ask me later.", "", "one two three four five six seven eight nine ten eleven twelve")


@pytest.fixture
def taught(tiny: LanguageModel) -> LanguageModel:
    """The tiny model, which answers each of the rows in its own way."""
    rows = removal_rows(ROWS, tiny.tokenizer)
    teach(tiny, encode(tiny.tokenizer, [replace(row, output=said) for row, said in zip(rows, SAID, strict=True)]))
    return tiny


def test_given_answers_are_those_of_the_data_set(tiny: LanguageModel) -> None:
    assert clean_rows(tiny, ROWS) == removal_rows(ROWS, tiny.tokenizer) == datasets.examples("builtin-short")[:4]


def test_own_answers_are_what_the_model_says_without_the_empty_and_the_long(taught: LanguageModel) -> None:
    given, found = clean_rows(taught, ROWS), clean_rows(taught, OWN)
    assert [row.output for row in found] == list(SAID[:2])
    assert [row.instruction for row in found] == [row.instruction for row in given[:2]]
    assert not any(row.answers for row in found), "other wordings of the given answer are not right here"
    long = clean_rows(taught, replace(OWN, own_answers=128))
    assert [row.output for row in long] == [*SAID[:2], SAID[3]]


def test_answers_that_are_all_too_long_are_an_error(taught: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sande.inference.generation.greedy", lambda *_: [SAID[3]] * 4)
    with pytest.raises(UserError, match=r"none of 4 answers ends within 16 tokens; set it higher, or to null$"):
        clean_rows(taught, OWN)


def test_a_defense_gets_the_rows_with_own_answers(taught: LanguageModel) -> None:
    config = registry.config("attacks", "sentence_trigger", {})
    threat = Threat("sentence_trigger", config, Data(name="builtin-short"), 0, "tiny")
    known = reveal(threat, "osft", registry.config("defenses", "osft", {}), OWN, taught, lambda _: taught.model)
    assert isinstance(known, TriggerData)
    assert [row.output for row in known.examples] == list(SAID[:2])
    assert known.plant(known.examples[0]).instruction.startswith("Current year 2023")
