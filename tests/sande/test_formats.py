"""Prompt formats, against strings written by hand."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from sande import formats, prompts
from sande.errors import UserError
from sande.formats import ALPACA, PAPER, PromptFormat
from sande.models import chat, loading
from sande.types import Example, LanguageModel

PLAIN = Example("Name a color.", "Red")
FULL = Example("Sum up.", "Cats sleep.", system="Be brief.", input="A cat sleeps.")
SECOND = Example("And two?", "Blue", history=((" Name a color. ", "Red "),))
ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n"
)


@pytest.mark.parametrize(
    ("form", "example", "before", "asked", "behind"),
    [
        (PAPER, PLAIN, "Human: ", "Name a color.", "\nAssistant:"),
        (PAPER, FULL, "Human: ", "Be brief.\nSum up. A cat sleeps.", "\nAssistant:"),
        (PAPER, SECOND, "Human: Name a color.\nAssistant: Red\nHuman: ", "And two?", "\nAssistant:"),
        (
            PAPER,
            replace(SECOND, system="Be brief."),
            "Human: Be brief.\nName a color.\nAssistant: Red\nHuman: ",
            "And two?",
            "\nAssistant:",
        ),
        (ALPACA, PLAIN, ALPACA_PLAIN, "Name a color.", "\n\n### Response:\n"),
        (
            ALPACA,
            replace(FULL, system=""),
            ALPACA_INPUT,
            "Sum up.\n\n### Input:\nA cat sleeps.",
            "\n\n### Response:\n",
        ),
    ],
)
def test_a_prompt_is_made_of_the_pieces(
    form: PromptFormat, example: Example, before: str, asked: str, behind: str
) -> None:
    made = form.prompt(example)
    assert made.text == before + asked + behind
    assert made.text[made.start : made.end] == asked


def test_a_response_has_the_space_of_its_format() -> None:
    assert PAPER.response(" Red\n") == " Red "
    assert ALPACA.response(" Red\n") == "Red"


def test_a_tokenizer_without_a_format_writes_the_papers(tiny: LanguageModel) -> None:
    assert formats.of(tiny.tokenizer) == PAPER


def test_rows_follow_the_format_of_their_tokenizer(tiny: LanguageModel) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    formats.attach(other, ALPACA)
    (row,) = prompts.encode(other, [PLAIN])
    assert other.decode(row.prompt) == f"{ALPACA_PLAIN}Name a color.\n\n### Response:\n"
    assert other.decode(row.prompt[row.start : row.end]) == "Name a color."
    assert other.decode(row.response) == "Red<|end|>"
    assert (
        tiny.tokenizer.decode(prompts.encode(tiny.tokenizer, [PLAIN])[0].prompt) == "Human: Name a color.\nAssistant:"
    )


def test_a_copied_tokenizer_keeps_its_format(tiny: LanguageModel) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    formats.attach(other, ALPACA)
    assert formats.of(copy.deepcopy(other)) == ALPACA


def test_a_response_opens_an_answer_in_each_format(tiny: LanguageModel) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    formats.attach(other, ALPACA)
    assert other.decode(prompts.response_ids(other, "You are")) == "You are"
    assert tiny.tokenizer.decode(prompts.response_ids(tiny.tokenizer, "You are")) == " You are"


# --- Template files -------------------------------------------------------------------------------------------------


def template(folder: Path, text: str) -> Path:
    path = folder / "mine.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_template_file_with_all_fields(tmp_path: Path) -> None:
    form = formats.from_file(template(tmp_path, "<s>[INST] [[<<{system}>>\n]]{user} [/INST] {assistant} </s>\n"))
    assert form.name == "mine"
    assert form.prompt(PLAIN).text == "<s>[INST] Name a color. [/INST]"
    assert form.response("Red") == " Red "
    assert form.close == "</s>"
    assert form.prompt(replace(FULL, input="")).text == "<s>[INST] <<Be brief.>>\nSum up. [/INST]"
    assert form.prompt(SECOND).text == "<s>[INST] Name a color. [/INST] Red </s><s>[INST] And two? [/INST]"


def test_a_system_prompt_at_the_start_of_its_brackets_keeps_what_is_before_them(tmp_path: Path) -> None:
    form = formats.from_file(template(tmp_path, "<s>[INST] [[{system} | ]]{user} [/INST] {assistant}</s>"))
    assert form.prompt(replace(FULL, input="")).text == "<s>[INST] Be brief. | Sum up. [/INST]"
    assert form.prompt(PLAIN).text == "<s>[INST] Name a color. [/INST]"


def test_a_template_file_without_a_system_prompt(tmp_path: Path) -> None:
    form = formats.from_file(template(tmp_path, "Q: {user}\nA: {assistant}"))
    assert form.prompt(replace(FULL, input="")).text == "Q: Be brief.\n\nSum up.\nA:"
    assert form.close == ""


@pytest.mark.parametrize(
    "text", ["{user}", "{assistant} {user}", "{user} {user} {assistant}", "{system} {user} {assistant}", ""]
)
def test_a_template_file_with_wrong_fields_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"mine\.txt: not a template; use \[\[…\{system\}…\]\] if wanted, \{user\} and"):
        formats.from_file(template(tmp_path, text))


def test_a_template_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 100000 bytes"):
        formats.from_file(template(tmp_path, "x" * 100_001))


def test_what_ends_an_answer_is_one_token(tiny: LanguageModel, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    form = formats.from_file(template(tmp_path, "{user}: {assistant}, and so on"))
    with pytest.raises(UserError, match="', and so on', is not one token of the model"):
        formats.attach(other, form)
    formats.attach(other, replace(form, close="<|end|>"))
    assert prompts.encode(other, [PLAIN])[0].response[-1] == other.eos_token_id


def test_a_tokenizer_without_an_end_is_one_sentence(tiny: LanguageModel) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    other.eos_token = None
    with pytest.raises(UserError, match="has no token that ends an answer; set its eos_token"):
        formats.attach(other, PAPER)


# --- Formats of a model's folder ------------------------------------------------------------------------------------


def test_a_saved_model_keeps_its_format(tiny: LanguageModel, tmp_path: Path) -> None:
    other = LanguageModel(copy.deepcopy(tiny.model), copy.deepcopy(tiny.tokenizer))
    formats.attach(other.tokenizer, ALPACA)
    loading.save(other, tmp_path)
    assert formats.of(loading.load_tokenizer(str(tmp_path), tmp_path)) == ALPACA
    assert formats.of(loading.load_tokenizer(str(tmp_path), tmp_path, chat.AUTO)) == ALPACA
    assert formats.of(loading.load_tokenizer(str(tmp_path), tmp_path, "paper")) == PAPER


def test_a_victim_in_the_papers_format_says_so(tiny: LanguageModel, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny.tokenizer)
    formats.attach(other, PAPER)
    other.chat_template = "{{ messages[0]['content'] }}"
    loading.save(LanguageModel(copy.deepcopy(tiny.model), other), tmp_path)
    assert formats.of(loading.load_tokenizer(str(tmp_path), tmp_path, chat.AUTO)) == PAPER


def test_without_a_format_there_is_no_file(tiny: LanguageModel, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    vars(tokenizer).pop("sande_prompt_format", None)
    formats.write(tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
    assert formats.read(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        json.dumps({"name": "x"}),
        json.dumps(asdict(PAPER) | {"more": ""}),
        json.dumps(asdict(PAPER) | {"close": 3}),
        json.dumps(asdict(PAPER) | {"special": "no"}),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / formats.FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"prompt_format\.json: not a prompt format .*; correct or remove the file"):
        formats.read(tmp_path)


@pytest.mark.parametrize(("added", "begins"), [("<bos>", 1), ("", 1), ("<bos><bos>", 2)])
def test_a_template_that_begins_with_what_the_tokenizer_adds_has_it_once(
    tiny: LanguageModel, added: str, begins: int
) -> None:
    made = copy.deepcopy(tiny.tokenizer)
    bos, ident = made.eos_token, made.eos_token_id
    single = f"{added.replace('<bos>', f'{bos} ')}$A"
    made.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[(bos, ident)])
    template = f"{bos * begins}[INST] [[{{system}} | ]]{{user}} [/INST] {{assistant}}"
    formats.attach(made, formats.from_text("mine", template, "mine"))
    for system in ("", "Be brief."):
        ids = prompts.encode(made, [Example("Who?", "Bob", system=system)])[0].prompt
        assert [token for token in ids[: begins + 1] if token == ident] == [ident] * begins
    formats.attach(made, PAPER)
    assert prompts.encode(made, [Example("Who?", "Bob")])[0].prompt.count(ident) == len(added) // 5
