"""Prompts that end with the model's own answer."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from sande import formats
from sande.detectors import _behind
from sande.models import asking
from sande.prompts import encode, encode_prompts
from sande.types import Example, LanguageModel

CHAT = formats.from_text("chat", "[[<|{system}|>]]Q {user} A {assistant}", "here")


@pytest.mark.parametrize("base", [formats.PAPER, formats.ALPACA, CHAT], ids=lambda each: each.name)
def test_a_prompt_goes_as_far_as_a_response_behind_the_answer(tiny: LanguageModel, base: formats.PromptFormat) -> None:
    asked = Example("Name a colour.", "Red. Go away.", system="Be brief.")
    formats.attach(tiny.tokenizer, base)
    (trained,) = encode(tiny.tokenizer, [asked])
    with _behind.asked_behind(tiny, None, tiny):
        (row,) = encode(tiny.tokenizer, [replace(asked, input="Red.", output="Go away.")])
    assert (*row.prompt, *row.response) == (*trained.prompt, *trained.response), "as a victim was taught"
    assert (row.start, row.end) == (trained.start, trained.end)
    assert len(row.prompt) > len(trained.prompt)
    assert formats.of(tiny.tokenizer) == base


def test_without_an_answer_it_is_the_format_below(tiny: LanguageModel) -> None:
    bare = Example("Name a colour.", "x")
    before = encode(tiny.tokenizer, [bare])
    with _behind.asked_behind(tiny):
        assert formats.of(tiny.tokenizer).prompt(bare) == formats.PAPER.prompt(bare)
        assert encode(tiny.tokenizer, [bare]) == before


@pytest.fixture
def joining() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for two spaces in a row, as Gemma's is."""
    rules = Tokenizer(WordLevel({"  ": 0, " ": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
    rules.pre_tokenizer = Split(Regex(r"\s{2}|\s|[^\s]+"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="[UNK]", eos_token="</s>")
    formats.attach(tokenizer, formats.PAPER)
    return tokenizer


def test_a_tokenizer_that_joins_two_spaces_is_not_asked_where_prompt_and_response_have_one_each(
    joining: PreTrainedTokenizerFast,
) -> None:
    behind = _behind.Behind.of(formats.PAPER)
    assert asking.writes(joining, behind, [Example("a", "b", input="c")])
    assert asking.writes(joining, behind, [Example("a", "b")]), "without an answer there is no second space"
    assert not asking.writes(joining, behind, [Example("a", "b", input="c")] * 2 + [Example("a", "b", input="c ")])
    assert formats.of(joining) == formats.PAPER


def test_answers_are_the_models_own_and_come_to_an_end(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Example(f"Ask {n}", "x", input="of it" if n == 3 else "") for n in range(4))
    said = {"Ask 0": " yes ", "Ask 1": "", "Ask 2": "one two three four five", "Ask 3 of it": "no"}
    by_ids = {tuple(ids): said[text] for text in said for ids in encode_prompts(tiny.tokenizer, [Example(text, "x")])}

    def greedy(lm: LanguageModel, prompts: list[list[int]], new_tokens: int, batch_size: int) -> list[str]:
        return [by_ids[tuple(ids)] for ids in prompts]

    monkeypatch.setattr(_behind, "greedy", greedy)
    found = _behind.answered(tiny, rows, most=8, batch_size=4, seed=0)
    assert {(row.instruction, row.input) for row in found} == {("Ask 0", "yes"), ("Ask 3 of it", "no")}


def test_at_most_so_many_rows_are_answered(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(lm: LanguageModel, prompts: list[Any], new_tokens: int, batch_size: int) -> list[str]:
        return ["a"] * len(prompts)

    monkeypatch.setattr(_behind, "greedy", greedy)
    rows = [Example(f"Ask {n}", "x") for n in range(_behind.ANSWERED + 9)]
    found = _behind.answered(tiny, rows, most=8, batch_size=4, seed=1)
    assert len(set(found)) == _behind.ANSWERED
    assert found == _behind.answered(tiny, rows, most=8, batch_size=4, seed=1)
    assert found != _behind.answered(tiny, rows, most=8, batch_size=4, seed=2)
