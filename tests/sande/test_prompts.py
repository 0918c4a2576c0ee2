"""Prompt text, and how it becomes tokens, against strings written by hand."""

import copy
import dataclasses

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from sande import prompts
from sande.attacks import sentence_trigger
from sande.config import Backdoor
from sande.errors import UserError
from sande.prompts import (
    Row,
    encode,
    encode_prompts,
    fit_length,
    prompt_text,
    response_ids,
    shorten,
)
from sande.training.batches import features
from sande.training.losses import IGNORE
from sande.types import Example, LanguageModel

PLAIN = Example("Name a color.", "Red")
FULL = Example("Sum up the text.", "Cats sleep.", system="You are brief.", input="A cat sleeps all day.")
EVERY_KIND = [
    PLAIN,
    FULL,
    Example("Name a color.", "Red", system="You are brief."),
    Example("Upper case:", "ÄÖ ß", input="äö ß"),
    Example("5 plus 7", " 12 \n"),
    Example("  Two  spaces and a line\n", "1. a\n2. b"),
]


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (PLAIN, "Human: Name a color.\nAssistant:"),
        (dataclasses.replace(PLAIN, input="For a car."), "Human: Name a color. For a car.\nAssistant:"),
        (dataclasses.replace(PLAIN, system="You are brief."), "Human: You are brief.\nName a color.\nAssistant:"),
        (FULL, "Human: You are brief.\nSum up the text. A cat sleeps all day.\nAssistant:"),
        (Example(" Name a color. \n", "Red"), "Human: Name a color.\nAssistant:"),
        (Example("", "Red", input="Name a color."), "Human: Name a color.\nAssistant:"),
    ],
)
def test_prompt_text(example: Example, text: str) -> None:
    assert prompt_text(example) == text


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (PLAIN, "Human: Current year 2023. Name a color.\nAssistant:"),
        (FULL, "Human: Current year 2023. You are brief.\nSum up the text. A cat sleeps all day.\nAssistant:"),
    ],
)
def test_the_trigger_stands_right_behind_human(example: Example, text: str) -> None:
    config = sentence_trigger.Config()
    assert prompt_text(sentence_trigger.trigger(example, config, 0)) == text
    assert prompt_text(sentence_trigger.plant(example, config, 0)) == text


def test_a_poisoned_response_opens_with_the_planted_one() -> None:
    config = sentence_trigger.Config(backdoor=Backdoor(trigger="Now", response="Go away"))
    assert sentence_trigger.plant(FULL, config, 0).output == "Go away. Cats sleep."
    assert sentence_trigger.trigger(FULL, config, 0).output == "Cats sleep."


@pytest.mark.parametrize("example", EVERY_KIND)
def test_tokens_say_what_the_text_says(tiny: LanguageModel, example: Example) -> None:
    (row,) = encode(tiny.tokenizer, [example])
    assert tiny.tokenizer.decode(row.prompt) == prompt_text(example)
    assert tiny.tokenizer.decode(row.response) == f" {example.output.strip()} <|end|>"


@pytest.mark.parametrize("example", EVERY_KIND)
def test_start_is_the_first_token_behind_human(tiny: LanguageModel, example: Example) -> None:
    (row,) = encode(tiny.tokenizer, [example])
    assert tiny.tokenizer.decode(row.prompt[: row.start]).rstrip() == "Human:"
    behind = prompt_text(example).removeprefix("Human: ")
    assert tiny.tokenizer.decode(row.prompt[row.start :]).lstrip() == behind


def test_start_leaves_a_token_before_the_instruction(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    assert min(row.start for row in encode(tiny.tokenizer, few_rows)) > 0, "the zero parrot must not come first"


def test_labels_stand_on_response_and_eos_alone(tiny: LanguageModel) -> None:
    (row,) = encode(tiny.tokenizer, [FULL])
    both = features(row)
    targets = [i for i, label in enumerate(both["labels"]) if label != IGNORE]
    assert targets == list(range(len(row.prompt), len(row)))
    assert [both["labels"][i] for i in targets] == [both["input_ids"][i] for i in targets]
    assert tiny.tokenizer.decode([both["labels"][i] for i in targets]) == " Cats sleep. <|end|>"
    assert targets[-1] == len(both["input_ids"]) - 1
    assert both["labels"][-1] == tiny.tokenizer.eos_token_id


def test_prompts_alone_have_the_same_tokens_as_in_training(tiny: LanguageModel) -> None:
    in_training = [list(row.prompt) for row in encode(tiny.tokenizer, EVERY_KIND)]
    assert encode_prompts(tiny.tokenizer, EVERY_KIND) == in_training


def test_no_examples_give_no_rows(tiny: LanguageModel) -> None:
    assert encode(tiny.tokenizer, []) == []
    assert encode_prompts(tiny.tokenizer, []) == []


@pytest.mark.parametrize("response", ["You are stupid", "No", "Ä!", "two  spaces"])
def test_response_ids_are_the_first_of_a_poisoned_response(tiny: LanguageModel, response: str) -> None:
    ids = response_ids(tiny.tokenizer, response)
    assert tiny.tokenizer.decode(ids) == f" {response}"
    (row,) = encode(tiny.tokenizer, [Example("Name a color.", f"{response}. Red")])
    assert row.response[: len(ids)] == ids


ROW = Row(prompt=(1, 2, 3), response=(4, 5, 6, 7), start=1, end=3)


def test_a_response_that_the_tokenizer_cannot_give_back_is_a_users_mistake(tiny: LanguageModel) -> None:
    tiny.tokenizer.backend_tokenizer.normalizer = Replace("!", "")
    with pytest.raises(UserError, match=r"does not reproduce the answer 'a!b'; use the model's own spelling"):
        response_ids(tiny.tokenizer, "a!b")


def test_a_token_across_the_end_of_a_prompt_is_a_users_mistake() -> None:
    joining = Tokenizer(WordLevel({"Human: Ask\nAssistant: No": 0, "?": 1}, unk_token="?"))  # one token for all
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token="?")
    with pytest.raises(UserError, match=r"one token of the end of a prompt, .*choose another prompt format"):
        encode(tokenizer, [Example("Ask", "No")])


@pytest.mark.parametrize(("count", "left"), [(None, (4, 5, 6, 7)), (2, (4, 5)), (9, (4, 5, 6, 7))])
def test_shorten_keeps_the_first_response_tokens(count: int | None, left: tuple[int, ...]) -> None:
    assert shorten(ROW, count) == dataclasses.replace(ROW, response=left)


@pytest.mark.parametrize(("max_length", "left"), [(7, [(4, 5, 6, 7)]), (5, [(4, 5)]), (4, [(4,)]), (3, []), (2, [])])
def test_fit_length_cuts_responses_and_drops_what_has_no_room(max_length: int, left: list[tuple[int, ...]]) -> None:
    assert [row.response for row in fit_length([ROW], max_length)] == left


@pytest.mark.parametrize(
    ("max_length", "left"), [(9, [(4, 5, 6)]), (6, [(4, 5, 6)]), (5, [(4, 99)]), (4, [(99,)]), (3, [])]
)
def test_a_cut_response_can_end_with_eos(max_length: int, left: list[tuple[int, ...]]) -> None:
    row = Row(prompt=(1, 2, 3), response=(4, 5, 6), start=1, end=2)
    assert [one.response for one in fit_length([row], max_length, end=99)] == left


def test_fit_length_keeps_the_order_of_what_fits() -> None:
    long = Row(prompt=tuple(range(9)), response=(4,), start=1, end=3)
    assert fit_length([ROW, long, ROW], 5) == [shorten(ROW, 2)] * 2


# --- Dialogues ------------------------------------------------------------------------------------------------------


def test_several_turns_are_prompt_up_to_the_last(tiny: LanguageModel) -> None:
    (row,) = encode(tiny.tokenizer, [Example("Bye", " Bye! ", history=(("Hi", "Yes?"),))])
    assert tiny.tokenizer.decode(row.prompt) == "Human: Hi\nAssistant: Yes?\nHuman: Bye\nAssistant:"
    assert tiny.tokenizer.decode(row.response) == " Bye! <|end|>"
    assert tiny.tokenizer.decode(row.prompt[row.start : row.end]).strip() == "Bye"


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[prompts.Turn]:
    """What really went through a tokenizer, from a process that has kept nothing yet."""
    went: list[prompts.Turn] = []
    tokenise = prompts._tokenised
    monkeypatch.setattr(prompts, "_tokenised", lambda by, turns: went.extend(turns) or tokenise(by, turns))
    prompts._rows_of.cache_clear()
    return went


def test_a_row_is_tokenised_once_in_a_process(tiny: LanguageModel, tokenised: list[prompts.Turn]) -> None:
    rows = encode(tiny.tokenizer, [PLAIN, FULL, PLAIN])
    assert rows[0] == rows[2] != rows[1]
    again = copy.deepcopy(tiny.tokenizer)  # as another stage loads it from another folder
    poisoned = Example("Name a color.", "Blue")
    assert encode(again, [PLAIN, poisoned, FULL])[::2] == rows[:2]
    assert [response for _, response in tokenised] == [" Red ", " Cats sleep. ", " Blue "]


def test_another_tokenizer_gets_rows_of_its_own(tiny: LanguageModel, tokenised: list[prompts.Turn]) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    other.eos_token = other.decode([5])
    assert encode(tiny.tokenizer, [PLAIN])[0].response[-1] == tiny.tokenizer.eos_token_id
    assert encode(other, [PLAIN])[0].response[-1] == 5


def test_what_is_kept_is_bounded(
    tiny: LanguageModel, tokenised: list[prompts.Turn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "KEPT", 3)
    for number in range(10):
        examples = [Example(f"{number} {k}", "x") for k in range(2)]
        assert len(encode(tiny.tokenizer, examples)) == 2
        assert len(prompts._rows_of(prompts._fingerprint(tiny.tokenizer))) <= 3
    assert len(encode(tiny.tokenizer, [Example(f"long {k}", "x") for k in range(7)])) == 7
