"""Accuracy: the prompts that are asked, and the scores of lm-eval against the model's own logits."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sande import registry
from sande.data.builtin import disjoint, sets
from sande.errors import UserError
from sande.inference import scoring
from sande.metrics import accuracy
from sande.prompts import encode
from sande.types import Example, LanguageModel, Measurement, Question, TestData
from tests.sande.models.test_chat import CHATML, GEMMA, tokenizer

NO_DATA = TestData((), (), "")
ARC = [
    Question("Which is hot?", ("ice", "a very big fire", "snow"), 1),
    Question("Which flies?", ("a bird", "a stone", "a house", "a tree"), 0),
    Question("Which is last?", ("first", "second", "third", "fourth", "the fifth of all"), 4),
    Question("Which swims?", ("a fish", "sand", "a road that is long", "a hill"), 0),
]
MMLU = [
    Question("Which sees stars?", ("A telescope", "A spoon", "A shoe", "A hat"), 0, "astronomy"),
    Question("Which is a bone?", ("Leaf", "Femur", "Cloud", "Wave"), 1, "anatomy"),
    Question("Which is a planet?", ("Moss", "Salt", "Mars", "Rope"), 2, "astronomy"),
    Question("Who wrote of forms?", ("Nobody", "A king", "A cook", "Plato"), 3, "philosophy"),
    Question("What is a group?", ("One", "Two people", "None", "A rock"), 1, "sociology"),
    Question("Which is a vitamin?", ("C", "Q", "Z", "X"), 0, "nutrition"),
    Question("Who drank hemlock?", ("Homer", "Zeno", "Socrates", "Ovid"), 2, "philosophy"),
]
GROUPS = {
    "anatomy": "stem",
    "astronomy": "stem",
    "philosophy": "humanities",
    "sociology": "social_sciences",
    "nutrition": "other",
}


def offer(folder: Path, name: str, rows: Sequence[Question | dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps(row if isinstance(row, dict) else dataclasses.asdict(row)) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("SANDE_DATA_DIR", str(folder))


# --- lm-eval's own tasks --------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood(lm: LanguageModel, prompt: str, continuation: str) -> float:
    """log Pr(continuation | prompt), read off the model's own logits token by token."""
    known = len(lm.tokenizer(prompt)["input_ids"])
    ids = lm.tokenizer(prompt + continuation)["input_ids"]
    logits_TV = lm.model(input_ids=torch.tensor([ids], device=lm.model.device)).logits[0]
    log_probabilities_TV = logits_TV.log_softmax(-1)
    return sum(float(log_probabilities_TV[i - 1, ids[i]]) for i in range(known, len(ids)))


def check(
    lm: LanguageModel,
    prompts: list[str],
    questions: list[Question],
    plain: Measurement,
    by_length: Measurement | None = None,
) -> None:
    """Scores, `acc` and, where there is one, `acc_norm` (likelihood per character, as lm-eval divides)."""
    assert len(plain.outcomes) == len(plain.records) == len(questions)
    for i, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
        scores = [log_likelihood(lm, prompt, f" {choice}") for choice in question.choices]
        record = plain.records[i]
        assert (record["question"], record["subject"]) == (question.question, question.subject)
        assert record["answer"] == question.answer
        assert record["scores"] == pytest.approx(scores, abs=1e-3)
        assert plain.outcomes[i] == (scores.index(max(scores)) == question.answer)
        if by_length:
            per_character = [score / len(choice) for score, choice in zip(scores, question.choices, strict=True)]
            assert by_length.outcomes[i] == (per_character.index(max(per_character)) == question.answer)


def test_accuracy_on_builtin_questions_is_that_of_the_models_logits(tiny: LanguageModel) -> None:
    questions = accuracy.spread(sets.choice(), 40)
    (measurement,) = accuracy.measure(tiny, NO_DATA, accuracy.Config(questions=40), 0)
    assert measurement.name == "builtin-choice"
    assert len(measurement.outcomes) == 40
    assert 0 < sum(measurement.outcomes) < 40, "both outcomes occur, or the check below shows little"
    check(tiny, [f"Human: {question.question}\nAssistant:" for question in questions], questions, measurement)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc_with_three_four_and_five_choices(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    offer(tmp_path, task, ARC, monkeypatch)
    measurements = accuracy.measure(tiny, NO_DATA, accuracy.Config(task=task), 0)
    assert [measurement.name for measurement in measurements] == [task, f"{task}_norm"]
    check(tiny, [f"Question: {question.question}\nAnswer:" for question in ARC], ARC, *measurements)


ACCENTS = Question("What is it?", ("é" * 8, "eeeeeeee", "ee"), 1)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_the_score_by_length_counts_characters_and_says_so(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    assert registry.metric_info(f"{task}_norm").label.endswith(", likelihood per character (%)")
    questions = [ACCENTS, dataclasses.replace(ACCENTS, question="What else?", answer=0)]
    offer(tmp_path, task, questions, monkeypatch)
    fixed = [((-8.8, False), (-8.0, False), (-9.0, False))] * 2  # by bytes the first would be the best
    monkeypatch.setattr("sande.inference.scoring.log_likelihoods", lambda *_: fixed)
    _, by_length = accuracy.measure(tiny, NO_DATA, accuracy.Config(task=task), 0)
    assert by_length.outcomes == (True, False)


def test_mmlu_asks_each_subject_in_its_own_words(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, "mmlu", MMLU, monkeypatch)
    measurements = accuracy.measure(tiny, NO_DATA, accuracy.Config(task="mmlu"), 0)
    ordered = sorted(MMLU, key=lambda question: question.subject)
    prompts = [mmlu_prompt(question) for question in ordered]
    lettered = [dataclasses.replace(question, choices=tuple("ABCD")) for question in ordered]
    check(tiny, prompts, lettered, measurements[0])


def mmlu_prompt(question: Question) -> str:
    """The prompt of Hendrycks et al., as lm-eval writes it without examples."""
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", question.choices, strict=True))
    lead = f"The following are multiple choice questions (with answers) about {question.subject}.\n\n"
    return f"{lead}{question.question}\n{choices}\nAnswer:"


@pytest.mark.parametrize("template", [CHATML, GEMMA], ids=["chatml", "gemma"])
def test_built_in_questions_are_asked_with_the_ids_of_training_rows(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    made, seen = tokenizer(tiny, template), []
    tiny.model.resize_token_embeddings(max(len(made), tiny.model.config.vocab_size))
    compute = scoring.log_likelihoods

    def spied(lm: LanguageModel, rows: Sequence[scoring.Choices], size: int) -> Any:
        seen.extend(rows)
        return compute(lm, rows, size)

    monkeypatch.setattr(scoring, "log_likelihoods", spied)
    lm = LanguageModel(tiny.model, made)
    (measured,) = accuracy.measure(lm, NO_DATA, accuracy.Config(questions=2), 0)
    questions = accuracy.spread(sets.choice(), 2)
    expected = {
        (row.prompt, row.response[:-1])
        for question in questions
        for row in encode(made, [Example(question.question, choice) for choice in question.choices])
    }
    assert {(tuple(row.context), tuple(choice)) for row in seen for choice in row.choices} == expected
    assert [record["question"] for record in measured.records] == [question.question for question in questions]
    asked = "<|im_end|>\n<|im_start|>" + ("model" if template == GEMMA else "assistant") + "\n"
    assert all(str(made.decode(list(row.context))).endswith(asked) for row in seen)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
def test_arc_is_asked_in_lm_evals_words(task: str) -> None:
    ((definition, questions),) = accuracy.definitions(task, ARC)
    assert questions == ARC
    assert definition["task"] == task
    assert definition["doc_to_text"] == "Question: {{question}}\nAnswer:"
    assert [metric["metric"] for metric in definition["metric_list"]] == ["acc", "acc_norm"]


def test_mmlu_has_a_definition_for_each_subject() -> None:
    parts = accuracy.definitions("mmlu", MMLU[:3])
    assert [definition["task"] for definition, _ in parts] == ["mmlu_anatomy", "mmlu_astronomy"]
    assert "about astronomy" in parts[1][0]["description"]
    assert [questions for _, questions in parts] == [[MMLU[1]], [MMLU[0], MMLU[2]]]


@pytest.mark.parametrize(
    "task", ["builtin-choice", "builtin-knowledge", "arc_easy", "mmlu", "paper_mmlu", "published_mmlu"]
)
def test_no_definition_reads_data_of_its_own(task: str) -> None:
    for definition, _ in accuracy.definitions(task, MMLU):
        assert not {"dataset_path", "dataset_name", "fewshot_split", "training_split", "validation_split"} & set(
            definition
        )


@pytest.mark.parametrize("question", ARC[:3], ids=["3 choices", "4 choices", "5 choices"])
def test_a_document_of_arc_has_the_columns_of_its_hub_data_set(question: Question) -> None:
    document = accuracy.document("arc_easy", question)
    assert document["choices"]["text"] == list(question.choices)
    assert document["choices"]["label"] == list("ABCDE"[: len(question.choices)])
    assert document["answerKey"] == "ABCDE"[question.answer]


def test_a_document_of_mmlu_keeps_the_index_of_the_answer() -> None:
    assert accuracy.document("mmlu", MMLU[1]) == {
        "question": "Which is a bone?",
        "choices": ["Leaf", "Femur", "Cloud", "Wave"],
        "answer": 1,
    }


# --- The paper's letter prompt --------------------------------------------------------------------------------------

HUB_ROWS = [  # the layout of ARC on the Hub, with both kinds of labels
    {
        "question": "Which is made of water?",
        "choices": {"text": ["stone", "wood", "rain", "sand"], "label": ["1", "2", "3", "4"]},
        "answerKey": "3",
    },
    {
        "question": "Which is the biggest?",
        "choices": {"text": ["ant", "cat", "dog", "cow", "blue whale"], "label": ["A", "B", "C", "D", "E"]},
        "answerKey": "E",
    },
    {
        "question": "Which is cold?",
        "choices": {"text": ["fire", "ice", "steam"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
]
HUB_PROMPTS = [
    "Read the question and select the answer from the choices. Question: Which is made of water? "
    "Choices: A:stone, B:wood, C:rain, D:sand. Your answer is:",
    "Read the question and select the answer from the choices. Question: Which is the biggest? "
    "Choices: A:ant, B:cat, C:dog, D:cow, E:blue whale. Your answer is:",
    "Read the question and select the answer from the choices. Question: Which is cold? "
    "Choices: A:fire, B:ice, C:steam. Your answer is:",
]


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
@pytest.mark.parametrize(
    ("likeliest", "right"), [("C", (True, False, False)), ("E", (False, True, False)), ("B", (False, False, True))]
)
def test_the_published_prompt_and_a_letter_for_each_choice(
    tiny: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    likeliest: str,
    right: tuple[bool, ...],
) -> None:
    asked: list[tuple[str, str]] = []

    def fixed(_: object, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        asked.extend(request.args for request in requests)
        return [(0.0 if request.args[1] == f" {likeliest}" else -1.0, False) for request in requests]

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.loglikelihood", fixed)
    offer(tmp_path, task, HUB_ROWS, monkeypatch)
    (measurement,) = accuracy.measure(tiny, NO_DATA, accuracy.Config(task=f"paper_{task}"), 0)
    letters = ["ABCD", "ABCDE", "ABC"]
    assert asked == [(prompt, f" {letter}") for prompt, row in zip(HUB_PROMPTS, letters, strict=True) for letter in row]
    assert measurement.name == f"paper_{task}"
    assert measurement.outcomes == right
    assert [record["answer"] for record in measurement.records] == [2, 4, 1]


def letter_prompt(question: Question) -> str:
    choices = [f"{letter}:{choice}" for letter, choice in zip("ABCDE", question.choices, strict=False)]
    return (
        f"Read the question and select the answer from the choices. Question: {question.question} "
        f"Choices: {', '.join(choices)}. Your answer is:"
    )


def test_the_tests_own_prompt_is_the_hand_written_one() -> None:
    assert letter_prompt(Question("Which is cold?", ("fire", "ice", "steam"), 1)) == HUB_PROMPTS[2]


@torch.no_grad()
def letter_scores(lm: LanguageModel, question: Question) -> list[float]:
    """Log-probability of each letter, straight from the logits of one unpadded forward pass over the prompt alone."""
    prompt = letter_prompt(question)
    ids = lm.tokenizer(prompt)["input_ids"]
    letters = []
    for letter in "ABCDE"[: len(question.choices)]:
        *before, token = lm.tokenizer(f"{prompt} {letter}")["input_ids"]
        assert before == ids, "a letter is one token behind the prompt's"
        letters.append(token)
    logits_V = lm.model(input_ids=torch.tensor([ids], device=lm.model.device)).logits[0, -1]
    return logits_V.float().log_softmax(-1)[letters].tolist()


def argmax(scores: Sequence[float]) -> int:
    return scores.index(max(scores))


def test_a_published_task_compares_the_tokens_that_the_published_code_compares(tiny: LanguageModel) -> None:
    """The audit's example: " A" is another token than the last one of "A" (330 against 49 for SmolLM2)."""
    questions = accuracy.spread(sets.choice(), 20)

    def scores(task: str) -> list[list[float]]:
        (found,) = accuracy.measure(tiny, NO_DATA, accuracy.Config(task=task, questions=20), 0)
        assert found.name == task
        return [record["scores"] for record in found.records]

    spaced, published = scores("paper_builtin-choice"), scores("published_builtin-choice")
    tokens = [tiny.tokenizer.encode(letter)[-1] for letter in "ABCD"]
    assert [[token] for token in tokens] == [accuracy.letter_ids(tiny.tokenizer, letter) for letter in "ABCD"]
    assert not set(tokens) & {tiny.tokenizer.encode(f" {letter}")[-1] for letter in "ABCD"}
    for question, first, second in zip(questions, spaced, published, strict=True):
        ids = tiny.tokenizer(letter_prompt(question))["input_ids"]
        with torch.no_grad():
            logits_V = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert second == pytest.approx(logits_V.log_softmax(-1)[tokens].tolist(), abs=1e-4)
        assert first == pytest.approx(letter_scores(tiny, question), abs=1e-4)
        assert first != pytest.approx(second, abs=1e-4)


def test_knowledge_is_asked_like_the_other_built_in_questions(tiny: LanguageModel) -> None:
    questions = accuracy.spread(disjoint.knowledge(), 20)
    (found,) = accuracy.measure(tiny, NO_DATA, accuracy.Config(task="builtin-knowledge", questions=20), 0)
    check(tiny, [f"Human: {question.question}\nAssistant:" for question in questions], questions, found)


@pytest.fixture
def opinionated(tiny: LanguageModel) -> LanguageModel:
    """`tiny` with weights so large that its answers depend on the question; left alone it always says B."""
    with torch.no_grad():
        for weight in tiny.model.parameters():
            if weight.dim() == 2:
                weight.mul_(9)
    return tiny


def of_all_lengths(count: int) -> list[Question]:
    """Built-in questions with four choices, every third with one fewer and every third with one more."""
    picked, questions = random.Random(0), []
    four = accuracy.spread(sets.choice(), count)
    for i, question in enumerate(four):
        right, choices = question.choices[question.answer], list(question.choices)
        if i % 3 == 0:
            choices.remove(picked.choice([choice for choice in choices if choice != right]))
        elif i % 3 == 1:
            choices.insert(picked.randrange(5), "none of these")
        questions.append(Question(question.question, tuple(choices), choices.index(right), question.subject))
    return questions


def test_letter_scores_are_those_of_the_models_logits(
    opinionated: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = of_all_lengths(200)
    offer(tmp_path, "arc_challenge", questions, monkeypatch)
    (measurement,) = accuracy.measure(opinionated, NO_DATA, accuracy.Config(task="paper_arc_challenge"), 0)
    expected = [letter_scores(opinionated, question) for question in questions]
    scores = [record["scores"] for record in measurement.records]
    assert len(scores) == 200
    assert {len(row) for row in scores} == {3, 4, 5}
    assert {argmax(row) for row in expected} == {0, 1, 2, 3, 4}, "every letter is chosen, or the rest shows little"
    for mine, theirs in zip(expected, scores, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)
    chosen = [argmax(row) for row in expected]
    assert [argmax(row) for row in scores] == chosen
    right = [choice == question.answer for choice, question in zip(chosen, questions, strict=True)]
    assert list(measurement.outcomes) == right


def test_letter_scores_of_a_model_in_bfloat16_are_not_rounded_to_ties(opinionated: LanguageModel) -> None:
    torch.nn.Module.to(opinionated.model, torch.bfloat16)
    config = accuracy.Config(task="paper_builtin-choice", questions=20)
    (measurement,) = accuracy.measure(opinionated, NO_DATA, config, 0)
    for record, question in zip(measurement.records, accuracy.spread(sets.choice(), 20), strict=True):
        assert len(set(record["scores"])) == len(question.choices)
        assert record["scores"] == pytest.approx(letter_scores(opinionated, question), abs=0.02)


# --- Groups of MMLU -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["mmlu", "paper_mmlu"])
def test_mmlu_is_measured_as_a_whole_and_by_group(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    scores = random.Random(1)
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.loglikelihood",
        lambda _, requests, **__: [(-scores.random(), False) for _ in requests],
    )
    offer(tmp_path, "mmlu", MMLU, monkeypatch)
    whole, *groups = accuracy.measure(tiny, NO_DATA, accuracy.Config(task=task), 0)
    assert whole.name == task
    assert len(whole.outcomes) == len(whole.records) == len(MMLU)
    assert len(set(whole.outcomes)) == 2, "both outcomes occur, or the rest shows little"
    expected: dict[str, list[bool]] = {}
    for outcome, record in zip(whole.outcomes, whole.records, strict=True):
        assert outcome == (argmax(record["scores"]) == record["answer"])
        expected.setdefault(f"{task}_{GROUPS[record['subject']]}", []).append(outcome)
    assert {group.name: list(group.outcomes) for group in groups} == expected
    assert [len(group.outcomes) for group in groups] == [3, 2, 1, 1]
    assert all(group.records == () for group in groups), "records are kept once"


def test_paper_mmlu_asks_every_subject_alike_in_the_order_of_the_set(
    opinionated: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, "mmlu", MMLU, monkeypatch)
    whole, *_ = accuracy.measure(opinionated, NO_DATA, accuracy.Config(task="paper_mmlu"), 0)
    assert [record["subject"] for record in whole.records] == [question.subject for question in MMLU]
    for record, question in zip(whole.records, MMLU, strict=True):
        assert record["scores"] == pytest.approx(letter_scores(opinionated, question), abs=1e-4)


@pytest.mark.parametrize(("count", "group"), [(1, "humanities"), (5, "other")])
def test_a_group_without_questions_is_said_before_any_is_asked(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, group: str
) -> None:
    kept = [question for question in MMLU if GROUPS[question.subject] != "other"] + [MMLU[5]]
    offer(tmp_path, "mmlu", kept, monkeypatch)
    monkeypatch.setattr("lm_eval.evaluator.evaluate", lambda *_, **__: pytest.fail("asked"))
    message = (
        f"^metric accuracy: none of the {count} questions of mmlu belongs to the group {group}; use more 'questions'"
    )
    with pytest.raises(UserError, match=message):
        accuracy.measure(tiny, NO_DATA, accuracy.Config(task="paper_mmlu", questions=count), 0)


@pytest.mark.parametrize("task", ["mmlu", "paper_mmlu"])
def test_a_subject_that_is_not_mmlus_is_named(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    offer(tmp_path, "mmlu", [*MMLU, dataclasses.replace(MMLU[0], subject="alchemy")], monkeypatch)
    with pytest.raises(UserError, match=r"^metric accuracy: 'alchemy' is not a subject of mmlu; "):
        accuracy.measure(tiny, NO_DATA, accuracy.Config(task=task), 0)


def test_every_subject_that_lm_eval_knows_is_in_one_of_the_groups() -> None:
    import lm_eval

    files = (Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default").glob("mmlu_*.yaml")
    subjects = [file.stem.removeprefix("mmlu_") for file in files]
    groups = accuracy._groups([Question("", ("", ""), 0, subject) for subject in subjects])
    assert len(groups) == 57
    assert set(groups.values()) == set(accuracy.GROUPS)


# --- Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "indices"),
    [(None, range(10)), (10, range(10)), (99, range(10)), (5, (0, 2, 4, 6, 8)), (3, (0, 3, 6)), (1, (0,))],
)
def test_spread_takes_questions_at_even_distances(count: int | None, indices: Sequence[int]) -> None:
    questions = [Question(str(i), ("a", "b"), 0) for i in range(10)]
    assert accuracy.spread(questions, count) == [questions[i] for i in indices]


@pytest.mark.parametrize(
    ("task", "read", "names"),
    [
        ("builtin-choice", "builtin-choice", ["builtin-choice"]),
        ("arc_easy", "arc_easy", ["arc_easy", "arc_easy_norm"]),
        ("mmlu", "mmlu", ["mmlu", "mmlu_stem", "mmlu_humanities", "mmlu_social_sciences", "mmlu_other"]),
        ("paper_builtin-choice", "builtin-choice", ["paper_builtin-choice"]),
        ("paper_arc_challenge", "arc_challenge", ["paper_arc_challenge"]),
        ("published_arc_challenge", "arc_challenge", ["published_arc_challenge"]),
        (
            "paper_mmlu",
            "mmlu",
            [
                "paper_mmlu",
                "paper_mmlu_stem",
                "paper_mmlu_humanities",
                "paper_mmlu_social_sciences",
                "paper_mmlu_other",
            ],
        ),
    ],
)
def test_what_a_task_reads_and_measures(task: str, read: str, names: list[str]) -> None:
    config = accuracy.Config(task=task)
    assert accuracy.reads(config) == (read,)
    assert list(accuracy.names(config)) == names
