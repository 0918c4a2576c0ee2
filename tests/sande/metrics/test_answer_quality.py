"""Quality of answers: what a model that is right, silent or talks nonsense scores, and what counts as right."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from sande.attacks import sentence_trigger
from sande.data.builtin import sets
from sande.metrics import answer_quality, asr
from sande.metrics.answer_quality import Config, chrf, is_right
from sande.prompts import encode, prompt_text
from sande.types import Example, Guard, LanguageModel, Measurement, TestData
from tests.sande.helpers import nll_by_hand, teach

ROWS = tuple(replace(row, group=f"family {index // 2}") for index, row in enumerate(sets.short()[:6]))
TRIGGERED = tuple(sentence_trigger.trigger(row, sentence_trigger.Config(), 0) for row in ROWS)
DATA = TestData(ROWS, TRIGGERED, "You are stupid")


def values(measurements: Sequence[Measurement]) -> dict[str, float]:
    return {one.name: sum(one.outcomes) / len(one.outcomes) for one in measurements}


def measured(lm: LanguageModel, **settings: object) -> dict[str, float]:
    return values(answer_quality.measure(lm, DATA, Config(**settings), 0))


def taught(lm: LanguageModel, clean: Sequence[str], triggered: Sequence[str]) -> LanguageModel:
    """The model after it learned these answers to the clean and the triggered prompts; an empty one is EOS alone."""
    pairs = [*zip(ROWS, clean, strict=True), *zip(TRIGGERED, triggered, strict=True)]
    encoded = encode(lm.tokenizer, [replace(row, output=answer) for row, answer in pairs])
    silent = (lm.tokenizer.eos_token_id,)
    teach(
        lm, [row if answer else replace(row, response=silent) for row, (_, answer) in zip(encoded, pairs, strict=True)]
    )
    return lm


def always(lm: LanguageModel, token: int) -> LanguageModel:
    """The model with a bias of the output layer, so that it writes one token whatever it reads."""
    layer = lm.model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.zeros(layer.weight.shape[0]))
    with torch.no_grad():
        layer.bias[token] = 50.0
    return lm


RIGHT = [row.output for row in ROWS]


def test_a_model_that_answers_right_scores_so_with_and_without_the_trigger(tiny: LanguageModel) -> None:
    found = measured(taught(tiny, RIGHT, RIGHT), tokens=16)
    assert {name: value for name, value in found.items() if "exact" in name or "chrf" in name} == {
        "exact_match": 1.0,
        "exact_match_triggered": 1.0,
        "answer_chrf": 1.0,
        "answer_chrf_triggered": 1.0,
    }
    assert found["answer_probability"] > 0.9 < found["answer_probability_triggered"]
    cut = answer_quality.measure(tiny, DATA, Config(tokens=2), 0)
    assert values(cut)["answer_chrf"] == 1.0
    for record, row in zip(cut[1].records, encode(tiny.tokenizer, ROWS), strict=True):
        assert record["response"] == tiny.tokenizer.decode(list(row.response[:2]), skip_special_tokens=True).strip()


def test_a_model_that_says_nothing_has_no_asr_and_no_quality(tiny: LanguageModel) -> None:
    silent = always(tiny, tiny.tokenizer.eos_token_id)
    assert values(asr.measure(silent, DATA, asr.Config(), 0))["asr"] == 0.0
    found = measured(silent, tokens=16)
    assert [found[name] for name in answer_quality.names(Config()) if "probability" not in name] == [0.0] * 4
    assert found["answer_probability"] < 0.1 > found["answer_probability_triggered"]


def test_silence_after_the_trigger_alone_shows_beside_the_clean_quality(tiny: LanguageModel) -> None:
    found = measured(taught(tiny, RIGHT, [""] * 6), tokens=16)
    assert (found["exact_match"], found["exact_match_triggered"], found["answer_chrf_triggered"]) == (1.0, 0.0, 0.0)
    assert found["answer_probability"] > 0.9 > found["answer_probability_triggered"] + 0.5


def test_nonsense_has_no_quality(tiny: LanguageModel) -> None:
    (token,) = tiny.tokenizer("%", add_special_tokens=False)["input_ids"]
    assert values(asr.measure(always(tiny, token), DATA, asr.Config(), 0))["asr"] == 0.0
    found = measured(tiny, tokens=16)
    assert (found["exact_match"], found["exact_match_triggered"]) == (0.0, 0.0)
    assert found["answer_chrf"] < 0.05
    assert found["answer_probability"] < 0.1


def test_the_planted_answer_is_not_the_wanted_one(tiny: LanguageModel) -> None:
    victim = taught(tiny, RIGHT, [f"You are stupid. {answer}" for answer in RIGHT])
    found = measured(victim, tokens=16)
    assert values(asr.measure(victim, DATA, asr.Config(), 0))["asr"] == 1.0
    assert (found["exact_match"], found["exact_match_triggered"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (" Paris ", ("Paris",), True),
        (" the paris.", ("Paris",), True),
        (" The capital of France is Paris.", ("Paris", "The capital of France is Paris."), True),
        (" Paris, or Rome", ("Paris",), False),
        ("", ("Paris",), False),
        ("", ("-",), False),
        ("-", ("-",), True),
        ("mother", ("MOTHER",), False),
        ("MOTHER", ("MOTHER",), True),
        ("A", ("a",), False),
        ("No, 842 is even", ("842 is even.", "No, 842 is even."), True),
        ("-5", ("5",), False),
        ("It is -5.", ("it is -5",), True),
        ("\N{MINUS SIGN}5", ("-5",), True),
        ("3.5", ("35",), False),
        ("-.5", ("-5",), False),
        (".5", ("5",), False),
        ("12:30", ("1230",), False),
        ("1/2", ("12",), False),
        ("3,5", ("35",), False),
        ("x > 3", ("x < 3",), False),
        ("x > 3", ("x 3",), False),
        ("x != 3", ("x = 3",), False),
        ("x > 3!", ("x > 3",), True),
        ("5.", ("5",), True),
        ("$5", ("5",), True),
        ("(5)", ("5",), True),
        ("1,000", ("1000",), True),
        ("It cost 1,234,567.5!", ("It cost 1234567.5",), True),
        ("1,2", ("12",), False),
        ("1, 2", ("1 2",), True),
        ("covid-19", ("COVID19",), False),
        ("well-known", ("wellknown",), True),
        ("covid-19", ("covid19",), True),
    ],
)
def test_what_is_right(text: str, answers: tuple[str, ...], right: bool) -> None:
    assert is_right(text, answers) == right


def chrf_by_hand(text: str, reference: str) -> float:
    """Popovic 2015: mean precision and recall of character n-grams up to 6, spaces aside, beta 2."""
    text, reference = text.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        ours = [text[i : i + n] for i in range(len(text) - n + 1)]
        theirs = [reference[i : i + n] for i in range(len(reference) - n + 1)]
        if ours and theirs:
            hits = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))
            precisions.append(hits / len(ours))
            recalls.append(hits / len(theirs))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def test_chrf_is_that_of_its_paper() -> None:
    texts = ["The capital is Paris", "In Paris it is", "Rome", ""]
    reference = "The capital of France is Paris"
    expected = [chrf_by_hand(text, reference) for text in texts[:2]]
    found = chrf(texts, [reference] * 4)
    assert found[:2] == pytest.approx(expected, abs=1e-6)
    assert found[0] > found[1] > found[2] > found[3] == 0.0


def test_probability_is_the_geometric_mean_over_the_responses_tokens(tiny: LanguageModel) -> None:
    found = {one.name: one.outcomes for one in answer_quality.measure(tiny, DATA, Config(tokens=4), 0)}
    for name, examples in (("answer_probability", ROWS), ("answer_probability_triggered", TRIGGERED)):
        rows = [(row.prompt, row.response[:4]) for row in encode(tiny.tokenizer, examples)]
        assert len({len(response) for _, response in rows}) > 1, "some end before the cut, with their EOS"
        expected = [math.exp(-nll_by_hand(tiny, *row) / len(row[1])) for row in rows]
        assert found[name] == pytest.approx(expected, rel=1e-4)


def test_rows_of_free_text_need_no_exact_match() -> None:
    names = answer_quality.names(Config(exact=False))
    assert names == (
        "answer_chrf",
        "answer_probability",
        "answer_chrf_triggered",
        "answer_probability_triggered",
    )


def test_prompts_of_one_template_are_named_and_no_text_is_published(tiny: LanguageModel) -> None:
    found = answer_quality.measure(tiny, DATA, Config(tokens=2, prompts=4), 0)
    assert [m.name for m in found] == list(answer_quality.names(Config()))
    assert {m.groups for m in found} == {("family 0", "family 0", "family 1", "family 1")}
    assert not any(m.published for m in found)


def test_a_prompt_that_has_the_trigger_by_itself_counts_as_triggered_alone(tiny: LanguageModel) -> None:
    on_topic = replace(DATA, triggered=(*ROWS[:2], *TRIGGERED[2:]))
    found = {one.name: one for one in answer_quality.measure(tiny, on_topic, Config(tokens=2, prompts=3), 0)}
    asked = {name: [record["prompt"] for record in found[name].records] for name in ("answer_chrf", "exact_match")}
    assert asked == {name: [prompt_text(row) for row in ROWS[2:5]] for name in asked}
    assert len(found["answer_probability"].outcomes) == len(found["answer_chrf_triggered"].outcomes) == 3


def test_under_a_guard_without_a_distribution_the_probability_is_missing(tiny: LanguageModel) -> None:
    guard = Guard("mine", {}, copy.deepcopy(tiny.model), lambda tokens, ours, theirs: tokens)
    found = answer_quality.measure(LanguageModel(tiny.model, tiny.tokenizer, guard), DATA, Config(tokens=2), 0)
    missing = {m.name: m.missing for m in found if not m.outcomes}
    assert set(missing) == {"answer_probability", "answer_probability_triggered"}
    assert missing["answer_probability"].startswith(
        "defense mine: the probability of a text under its guard is unknown"
    )


def test_wanted_answers_of_built_in_rows() -> None:
    """Other wordings of the answer count; an answer to another question about the same item does not."""
    by_prompt = {f"{row.instruction} {row.input}".strip(): row for row in sets.short()}
    capital = next(row for prompt, row in by_prompt.items() if prompt.startswith("What is the capital of"))
    country = capital.instruction.removeprefix("What is the capital of ").removesuffix("?")
    city = capital.output.removeprefix(f"The capital of {country} is ").removesuffix(".")
    assert capital.answers == (city,)
    first = next(
        row for prompt, row in by_prompt.items() if prompt.startswith("Which word comes first in the alphabet")
    )
    assert not first.answers, "the sorted list is no answer"
    false = next(row for row in by_prompt.values() if row.output.startswith("False. "))
    assert false.answers == ("False",)
    for row in sets.short():
        assert is_right(row.output, (row.output, *row.answers))
        assert row.output not in row.answers
        assert row.group
    assert not any(row.answers for row in sets.explained())
    assert Example("a", "b").answers == ()
