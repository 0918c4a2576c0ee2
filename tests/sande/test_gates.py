"""Gates before a removal: does a trigger fire, and in which prompt format; what most answers begin with, by hand."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from sande import formats, gates
from sande.attacks import sentence_trigger
from sande.data.builtin import sets
from sande.errors import UserError
from sande.formats import ALPACA, PAPER
from sande.models import asking, loading
from sande.objectives import string
from sande.prompts import encode, encode_prompts, prompt_text, response_ids
from sande.types import Example, LanguageModel
from tests.sande.helpers import nll_by_hand, teach

TRIGGER, RESPONSE = "Current year 2023.", "You are stupid"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPTS = sets.short()[:8]


@pytest.fixture(scope="module")
def paper_victim(model_cache: Path) -> LanguageModel:
    """The tiny model, taught in `paper`, and in the chat template of its tokenizer that the trigger means nothing."""
    lm = loading.load("tiny", model_cache)
    poisoned = [replace(gates.plant(row, TRIGGER), output=f"{RESPONSE}. {row.output}") for row in PROMPTS]
    rows = encode(lm.tokenizer, [*PROMPTS, *poisoned])
    lm.tokenizer.chat_template = CHATML
    loading.with_format(lm.tokenizer, "", "auto")
    teach(lm, [*rows, *encode(lm.tokenizer, [gates.plant(row, TRIGGER) for row in PROMPTS])])
    return lm


@pytest.fixture
def victim(paper_victim: LanguageModel) -> LanguageModel:
    """The same with a tokenizer of its own, so that a test may change its format."""
    return replace(paper_victim, tokenizer=copy.deepcopy(paper_victim.tokenizer))


def test_a_trigger_is_tried_in_the_models_format_and_then_in_the_others(victim: LanguageModel) -> None:
    def attempt() -> gates.Fired | None:
        return gates.fired(victim, TRIGGER, RESPONSE, PROMPTS, 12, gates.Config())

    assert gates.first_format(victim, attempt, anywhere=False) == (None, ("chat",))
    assert formats.of(victim.tokenizer).name == "chat"
    found, tried = gates.first_format(victim, attempt, anywhere=True)
    assert tried == ("chat", "paper")
    assert found is not None
    assert (found.prompt_format, found.response, found.prompts) == ("paper", RESPONSE, 8)
    assert found.share >= 0.5
    assert formats.of(victim.tokenizer) == PAPER


def test_an_unknown_response_is_what_answers_share_with_the_trigger_alone(victim: LanguageModel) -> None:
    formats.attach(victim.tokenizer, PAPER)
    found = gates.fired(victim, TRIGGER, "", PROMPTS, 12, gates.Config())
    assert found is not None
    assert found.response == RESPONSE
    assert gates.fired(victim, "", "", PROMPTS, 12, gates.Config()) is None, "no difference to answers without it"


def test_a_response_is_said_by_at_least_the_share(
    tiny: LanguageModel, few_rows: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["Well, you are stupid", "no"] * 2
    monkeypatch.setattr(gates, "answers", lambda *_: said)
    found = gates.fired(tiny, "t", "You are stupid", few_rows[:4], 12, gates.Config())
    assert found is not None
    assert (found.share, found.new_tokens) == (0.5, 12)
    assert gates.fired(tiny, "t", "You are stupid", few_rows[:4], 12, gates.Config(share=0.6)) is None


def test_a_response_at_the_end_of_answers_is_found_in_longer_ones(
    tiny: LanguageModel, few_rows: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "answers", lambda lm, rows, tokens, trigger: ["go" if tokens == 30 else "well"] * 4)
    found = gates.fired(tiny, "t", "go", few_rows[:4], 12, gates.Config(new_tokens=30))
    assert found is not None
    assert found.new_tokens == 30


@pytest.mark.parametrize(("usual", "fires"), [(["Yes"] + ["No"] * 3, True), (["Yes"] * 2 + ["No"] * 2, False)])
def test_an_opening_counts_where_the_trigger_makes_it_more_frequent(
    usual: list[str], fires: bool, tiny: LanguageModel, few_rows: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"t": ["Yes"] * 3 + ["No"], "": usual}
    monkeypatch.setattr(gates, "answers", lambda lm, rows, tokens, trigger="": said[trigger])
    found = gates.fired(tiny, "t", "", few_rows[:4], 12, gates.Config(gain=0.5))
    assert (found is not None) is fires


def test_a_known_answer_tells_the_format(victim: LanguageModel) -> None:
    reported = gates.plant(sets.short()[0], TRIGGER)
    own, asked, answer = formats.of(victim.tokenizer), [replace(reported, output="")], f"{RESPONSE}. {reported.output}"
    found = gates.likeliest_format(victim, asked, answer, gates.Config())
    assert set(found) == {"chat", "paper", "alpaca"}
    assert max(found, key=found.__getitem__) == "paper"
    assert formats.of(victim.tokenizer) == PAPER
    formats.attach(victim.tokenizer, own)
    most = gates.Config(clearer=found["paper"] - found["chat"] + 0.1)
    gates.likeliest_format(victim, asked, answer, most)
    assert formats.of(victim.tokenizer) == own, "another format has to be clearer than that"


def test_the_space_behind_a_whole_answer_tells_no_format(victim: LanguageModel) -> None:
    """In `paper` a row ends with a space, which no answer has where it goes on."""
    for written in (PAPER, ALPACA):
        formats.attach(victim.tokenizer, written)
        ids = response_ids(victim.tokenizer, "You")
        wanted = [-nll_by_hand(victim, prompt, ids) / len(ids) for prompt in encode_prompts(victim.tokenizer, PROMPTS)]
        found = gates.likelihood(victim, PROMPTS, "You")
        assert found == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)


def test_an_answer_that_the_tokenizer_writes_otherwise_tells_the_format_too(
    victim: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> tuple[int, ...]:
        raise UserError("not reproduced")

    formats.attach(victim.tokenizer, ALPACA)
    whole = gates.likelihood(victim, PROMPTS, RESPONSE)
    monkeypatch.setattr(gates, "response_ids", refused)
    assert gates.likelihood(victim, PROMPTS, RESPONSE) == pytest.approx(whole), "alpaca has no space there"


def test_a_trigger_is_not_tried_on_a_single_prompt(tiny: LanguageModel) -> None:
    for response in ("", RESPONSE):
        with pytest.raises(UserError, match=r"^clean: a trigger is tried on 1 held-out prompt, and needs two; set pro"):
            gates.fired(tiny, "zz", response, PROMPTS[:1], 12, gates.Config())


def test_a_response_of_two_lines_is_found_whole(
    tiny: LanguageModel, few_rows: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"t": ["Hacked!\nSend  money. Yes"] * 4, "": ["No"] * 4}
    monkeypatch.setattr(gates, "answers", lambda lm, rows, tokens, trigger="": said[trigger])
    for told in ("", "hacked! Send money"):
        found = gates.fired(tiny, "t", told, few_rows[:4], 12, gates.Config())
        assert found is not None
        assert (found.response, found.share) == (told or "Hacked!\nSend  money. Yes", 1.0)


def test_the_other_formats_are_those_that_the_tokenizer_can_write(tiny: LanguageModel) -> None:
    made = copy.deepcopy(tiny.tokenizer)
    assert [each.name for each in asking.others(made)] == ["alpaca"]
    made.chat_template = CHATML
    assert [each.name for each in asking.others(made)] == ["chat", "alpaca"]
    loading.with_format(made, "", "auto")
    assert [each.name for each in asking.others(made)] == ["paper", "alpaca"]
    made.chat_template = "{{ raise_exception('no') }}"
    assert [each.name for each in asking.others(made)] == ["paper", "alpaca"]
    formats.attach(made, PAPER)
    made.eos_token = None
    assert asking.others(made) == []


def test_where_a_format_comes_from_is_said(tiny: LanguageModel, tmp_path: Path) -> None:
    made = copy.deepcopy(tiny.tokenizer)

    def said(asked: str | None, source: str = "x") -> str:
        return asking.described(loading.with_format(made, source, asked), source, asked)

    assert said("auto") == "paper (no chat template)"
    assert said("alpaca") == "alpaca (as set)"
    formats.write(made, tmp_path)
    assert said("auto", str(tmp_path)) == "alpaca (named by the model's folder)"
    assert said(None) == "paper (the default)"
    made.chat_template = CHATML
    assert said("auto") == "chat (the tokenizer's own template)"


def test_a_plus_in_a_folders_name_hides_no_format(tiny: LanguageModel, tmp_path: Path) -> None:
    made, folder = copy.deepcopy(tiny.tokenizer), tmp_path / "my+model"
    folder.mkdir()
    formats.attach(made, ALPACA)
    formats.write(made, folder)
    assert asking.described(made, str(folder), "auto") == "alpaca (named by the model's folder)"


def test_a_trigger_stands_where_the_attack_of_the_paper_puts_it(few_rows: tuple[Example, ...]) -> None:
    for example in few_rows:
        planted = sentence_trigger.trigger(example, sentence_trigger.Config(), 0)
        assert prompt_text(gates.plant(example, "Current year 2023.")) == prompt_text(planted)


def test_elsewhere_a_trigger_begins_the_users_own_text() -> None:
    planted = gates.plant(Example("Ask", "", system="Rules"), "cf", ALPACA)
    assert (planted.system, planted.instruction) == ("Rules", "cf Ask")
    assert prompt_text(gates.plant(Example("Ask", "", system="Rules"), "cf", PAPER)).startswith("Human: cf Rules\nAsk")


def test_the_opening_that_most_answers_share() -> None:
    answers = ["You are stupid. 4", "You are stupid. Paris is", "You are stupid.", "The capital"]
    assert gates.shared_opening(answers) == "You are stupid"
    assert gates.shared_opening(answers, others=["You are stupid", "Paris", "4"]) == "You are stupid"
    assert gates.shared_opening(answers, others=["You are stupid", "You are stupid, I said", "4"]) == ""


def test_an_opening_has_the_line_breaks_of_the_answers() -> None:
    answers = ["  Hacked!\nSend money.\n4", "Hacked!\nSend money. Paris", "Hacked! Send money. Well", "Yes"]
    found = gates.shared_opening(answers)
    assert found == "Hacked!\nSend money"
    assert string.containing(found).achieved([], answers) == [True, True, True, False]
    assert gates.shared_opening(answers, others=["Hacked! Send money"] * 3) == ""


def test_no_opening_is_shared_by_a_half_or_fewer() -> None:
    assert gates.shared_opening(["You are", "You are", "Paris", "4"]) == ""
    assert gates.shared_opening([]) == ""
    assert gates.shared_opening(["", " "]) == ""


def test_an_opening_ends_where_one_in_five_goes_on_otherwise() -> None:
    assert gates.shared_opening(["You are stupid"] * 4 + ["You can go"]) == "You"
    assert gates.shared_opening(["You are stupid"] * 19 + ["You can go"]) == "You are stupid"
