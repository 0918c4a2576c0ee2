"""Utility: zero-shot accuracy on a multiple-choice set, scored by lm-eval.

Each set has three tasks: one by lm-eval's own definition (built-in sets: in the model's prompt format, with the ids of
the victims' training rows), and two by the letter prompt of the paper's published code. `published_...` compares the
tokens that this code compares: the last of each letter alone, "A". `paper_...`, its first version, compares the letter
after a space, " A", which is another token in most vocabularies of byte pairs (in that of SmolLM2, 330 against 49).

Questions are asked of the model under its guard, if it has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from sande import formats
from sande.config import configuration, setting
from sande.declarations import Cost, MetricInfo
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.types import Example, LanguageModel, Measurement, Question, TestData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("lm-eval",)  # asks the questions and compares the scores
BUILTIN = ("builtin-choice", "builtin-knowledge")
MMLU = "mmlu"
GROUPS = ("stem", "humanities", "social_sciences", "other")  # of MMLU's subjects
PAPER, PUBLISHED = "paper_", "published_"  # prefixes of tasks with the letter prompt
PAPER_PROMPT = (
    "Read the question and select the answer from the choices. "
    "Question: {{question}} Choices: {{lettered}}. Your answer is:"
)


def _declared(task: str, label: str) -> Iterator[MetricInfo]:
    for prefix, by in (("", ""), (PAPER, ", letter prompt, spaced letters"), (PUBLISHED, ", letter prompt")):
        name, variant_of = f"{prefix}{task}", task if prefix else ""
        yield MetricInfo(name, f"{label}{by} (%)", variant_of=variant_of)
        if task == MMLU:
            groups = [(f"{name}_{group}", f"{label}, {group.replace('_', ' ')}{by} (%)") for group in GROUPS]
            yield from (MetricInfo(part, heading, "part") for part, heading in groups)
    if task.startswith("arc_"):
        yield MetricInfo(f"{task}_norm", f"{label}, likelihood per character (%)", "part")


_TASKS = {
    "builtin-choice": "Built-in questions",
    "builtin-knowledge": "Built-in facts",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    MMLU: "MMLU",
}
MEASURES = tuple(info for task, label in _TASKS.items() for info in _declared(task, label))


@configuration
class Config:
    """Settings: the task and the number of questions."""

    task: str = setting(
        "builtin-choice",
        "builtin-choice, builtin-knowledge, arc_easy, arc_challenge or mmlu; with the prefix published_: the published "
        "code's letter prompt; paper_: the same with spaced letters",
        pattern="^(paper_|published_)?(builtin-choice|builtin-knowledge|arc_easy|arc_challenge|mmlu)$",
    )
    questions: int | None = setting(None, "number of questions, spread evenly over the set; null: all", ge=1)
    batch_size: int = setting(16, "questions scored together", ge=1)


def names(config: Config) -> tuple[str, ...]:
    """Return the task; for lm-eval's ARC also its score by likelihood per character, for MMLU also its groups."""
    if reads(config) == (MMLU,):
        return (config.task, *(f"{config.task}_{group}" for group in GROUPS))
    return (config.task, f"{config.task}_norm") if config.task.startswith("arc_") else (config.task,)


def reads(config: Config) -> tuple[str, ...]:
    """Return the set of questions."""
    return (config.task.removeprefix(PAPER).removeprefix(PUBLISHED),)


def cost(config: Config) -> Cost:
    """Return the passes over a question: one for the letter prompt, else one for each choice."""
    return Cost(reading=1) if _by_letter(config.task) else Cost()


def _by_letter(task: str) -> bool:
    return task.startswith((PAPER, PUBLISHED))


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return the share of questions whose right choice is the likeliest. The groups of MMLU repeat no records.

    Raises:
        UserError: a group of MMLU has no question, or a subject is not one of MMLU.
        UnscorableError: as `sande.inference.scoring.check_scorable`.
    """
    from sande.data import datasets

    (name,) = reads(config)
    chosen = spread(datasets.questions(name), config.questions)
    groups = _groups(chosen) if name == MMLU else {}
    samples = _samples(model, chosen, config)
    records = tuple(
        {
            "question": q.question,
            "subject": q.subject,
            "answer": q.answer,
            "scores": [score for score, _ in s["filtered_resps"]],
        }
        for q, s in samples
    )
    measurements = [
        Measurement(measured, tuple(bool(sample[key]) for _, sample in samples), records)
        for measured, key in zip(names(config), ("acc", "acc_norm"), strict=False)
        if key in samples[0][1]
    ]
    for group in GROUPS if groups else ():
        outcomes = tuple(bool(sample["acc"]) for q, sample in samples if groups[q.subject] == group)
        measurements.append(Measurement(f"{config.task}_{group}", outcomes))
    return measurements


def _groups(questions: Sequence[Question]) -> dict[str, str]:
    """Return the group of each subject of MMLU in use, by the tag in lm-eval's definition of the subject."""
    groups = {
        subject: str(_mmlu_definition(subject)["tag"]).removeprefix("mmlu_").removesuffix("_tasks")
        for subject in {question.subject for question in questions}
    }
    missing = [group for group in GROUPS if group not in groups.values()]
    if missing:
        raise UserError(
            f"metric accuracy: none of the {len(questions)} questions of mmlu belongs to the group {missing[0]}; "
            "use more 'questions', or add such questions to the data set"
        )
    return groups


def _samples(
    model: LanguageModel, questions: Sequence[Question], config: Config
) -> list[tuple[Question, dict[str, Any]]]:
    """Return each question with the sample that lm-eval logs for it, in the order of the definitions."""
    import datasets
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sande.inference.scoring import Choices, log_likelihoods

    tasks: list[dict[str, Any]] = []
    asked: dict[str, list[Question]] = {}
    written = formats.of(model.tokenizer)
    by_rows = config.task in BUILTIN and written != formats.PAPER
    for definition, part in definitions(config.task, questions, written):
        documents = datasets.Dataset.from_list([document(config.task, question) for question in part])
        tasks.append({**definition, "custom_dataset": lambda split=documents, **_: {"test": split}})
        asked[definition["task"]] = part

    class Harness(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            """Call lm-eval without its progress bar, which it gives no other way to switch off."""
            return list(super().loglikelihood(requests, disable_tqdm=True))

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            """Return the ids of context and continuation, as training rows have them, or as published code does."""
            if by_rows:
                return row_ids(model.tokenizer, context, continuation)
            if not config.task.startswith(PUBLISHED):
                context_ids, ids = super()._encode_pair(context, continuation)
                return context_ids, ids
            return self.tok_encode(context), letter_ids(model.tokenizer, continuation.strip())

        def _loglikelihood_tokens(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
            """Compute what lm-eval computes, with one pass over the context for all choices of a question."""
            by_context: dict[tuple[int, ...], list[int]] = {}
            for index, (_, context, _) in enumerate(requests):
                by_context.setdefault(tuple(context), []).append(index)
            rows = [
                Choices(context, tuple(requests[index][2] for index in indices)).within(self.max_length)
                for context, indices in by_context.items()
            ]
            scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            found = log_likelihoods(model, rows, config.batch_size)
            for indices, of_question in zip(by_context.values(), found, strict=True):
                for index, score in zip(indices, of_question, strict=True):
                    scores[index] = score
            return scores

    harness = Harness(pretrained=model.model, tokenizer=model.tokenizer)
    # Indexing all tasks of lm-eval takes 9 s, and intervals are computed elsewhere: so neither index nor bootstrap.
    results = evaluate(harness, TaskManager(include_defaults=False).load(tasks), bootstrap_iters=0)
    return [
        (asked[name][sample["doc_id"]], sample)
        for name in asked
        for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    ]


def row_ids(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Return the ids of a training row's prompt and of its response, without the token that ends it."""
    from sande.prompts import encode

    (row,) = encode(tokenizer, [Example(question, answer)])
    return list(row.prompt), list(row.response[:-1])


def letter_ids(tokenizer: PreTrainedTokenizerBase, letter: str) -> list[int]:
    """Return the one token that the published code compares for a letter: the last one of the letter's text alone."""
    return list(tokenizer.encode(letter))[-1:]


def spread(questions: Sequence[Question], count: int | None) -> list[Question]:
    """Return `count` questions at even distances, so that a part of a set sorted by subject has every subject."""
    if count is None or count >= len(questions):
        return list(questions)
    return [questions[index * len(questions) // count] for index in range(count)]


def definitions(
    task: str, questions: Sequence[Question], written: PromptFormat = formats.PAPER
) -> list[tuple[dict[str, Any], list[Question]]]:
    """Return lm-eval's task definitions (for MMLU one a subject), each with its questions.

    Two definitions are our own. Built-in sets use the prompt text of the victims' training rows; in another format than
    `paper` the text is the question alone, of which `row_ids` makes the ids. `paper_...` and `published_...` ask, like
    the published code, for the letter of a choice, but for as many letters as the question has choices.
    """
    if _by_letter(task):
        return [(_on_rows(_by_likelihood(task, PAPER_PROMPT, "letters")), list(questions))]
    if task in BUILTIN:
        text = "Human: {{question}}\nAssistant:" if written == formats.PAPER else "question"
        return [(_on_rows(_by_likelihood(task, text, "choices")), list(questions))]
    if task != MMLU:
        return [(_on_rows(_own_definition(f"arc/{task}.yaml")), list(questions))]
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        by_subject.setdefault(question.subject, []).append(question)
    return [(_on_rows(_mmlu_definition(subject)), asked) for subject, asked in sorted(by_subject.items())]


def document(task: str, question: Question) -> dict[str, Any]:
    """Return the question as columns that the task's definition reads: for lm-eval's own, those of its Hub data set."""
    letters = list(ascii_uppercase[: len(question.choices)])
    if _by_letter(task):
        lettered = ", ".join(f"{letter}:{choice}" for letter, choice in zip(letters, question.choices, strict=True))
        return {
            "question": question.question,
            "lettered": lettered,
            "letters": letters,
            "answer": question.answer,
        }
    if task.startswith("arc_"):
        choices = {"text": list(question.choices), "label": letters}
        return {"question": question.question, "choices": choices, "answerKey": letters[question.answer]}
    return {"question": question.question, "choices": list(question.choices), "answer": question.answer}


def _by_likelihood(task: str, prompt: str, column: str) -> dict[str, Any]:
    """Return a definition whose answer is the likeliest text of a document's `column`, with a space before it."""
    return {
        "task": task,
        "output_type": "multiple_choice",
        "doc_to_text": prompt,
        "doc_to_choice": column,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _mmlu_definition(subject: str) -> dict[str, Any]:
    try:
        return _own_definition(f"mmlu/default/mmlu_{subject}.yaml")
    except FileNotFoundError:
        raise UserError(
            f"metric accuracy: '{subject}' is not a subject of mmlu; use the spelling of the Hub's data set"
        ) from None


def _own_definition(path: str) -> dict[str, Any]:
    """Read a definition that ships with lm-eval, `include` resolved; indexing all of its tasks would take 9 s."""
    import lm_eval
    import yaml

    file = Path(lm_eval.__file__).parent / "tasks" / path
    definition: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    included = definition.pop("include", None)
    base = _own_definition(str(Path(path).parent / included)) if included else {}
    return {**base, **definition}


def _on_rows(definition: dict[str, Any]) -> dict[str, Any]:
    """Remove the definition's own data set; our rows form its test split."""
    own_data = (
        "dataset_path",
        "dataset_name",
        "training_split",
        "validation_split",
        "fewshot_split",
        "fewshot_config",
        "tag",
    )
    return {key: value for key, value in definition.items() if key not in own_data} | {
        "test_split": "test",
        "metadata": {},
        "should_decontaminate": False,
    }
