"""Utility: zero-shot accuracy on a multiple-choice set, scored by lm-eval with its own task definitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sande.config import configuration, setting
from sande.types import LanguageModel, Measurement, Question, TestData

BUILTIN = "builtin-choice"


@configuration
class Config:
    """Which questions, and how many."""

    task: str = setting(
        BUILTIN,
        "builtin-choice, arc_easy, arc_challenge or mmlu",
        pattern="^(builtin-choice|arc_easy|arc_challenge|mmlu)$",
    )
    questions: int | None = setting(None, "use so many, spread evenly over the set; null: all", ge=1)
    batch_size: int = setting(16, "answers scored together", ge=1)


def names(config: Config) -> tuple[str, ...]:
    """The task, and for ARC also the task by likelihood per byte, as lm-eval defines them."""
    return (config.task, f"{config.task}_norm") if config.task.startswith("arc_") else (config.task,)


def reads(config: Config) -> tuple[str, ...]:
    """The set of questions."""
    return (config.task,)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Accuracy: how often the right choice is the likeliest."""
    import datasets
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sande.data import sources

    chosen = spread(sources.questions(config.task), config.questions)
    tasks: list[dict[str, Any]] = []
    asked: dict[str, list[Question]] = {}
    for definition, questions in definitions(config.task, chosen):
        documents = datasets.Dataset.from_list([document(config.task, question) for question in questions])
        tasks.append({**definition, "custom_dataset": lambda split=documents, **_: {"test": split}})
        asked[definition["task"]] = questions

    class Harness(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            """As in lm-eval, which leaves no other way to switch the progress bar off."""
            return list(super().loglikelihood(requests, disable_tqdm=True))

    harness = Harness(pretrained=model.model, tokenizer=model.tokenizer, batch_size=config.batch_size)
    # Without lm-eval's indexing of all its tasks (9 s) and without its bootstrap: intervals are ours.
    results = evaluate(harness, TaskManager(include_defaults=False).load(tasks), bootstrap_iters=0)
    samples = [
        (asked[name][sample["doc_id"]], sample)
        for name in asked
        for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    ]
    records = tuple(
        {
            "question": q.question,
            "subject": q.subject,
            "answer": q.answer,
            "scores": [score for score, _ in s["filtered_resps"]],
        }
        for q, s in samples
    )
    return [
        Measurement(name, tuple(bool(sample[key]) for _, sample in samples), records)
        for name, key in zip(names(config), ("acc", "acc_norm"), strict=False)
    ]


def spread(questions: Sequence[Question], count: int | None) -> list[Question]:
    """So many questions at even distances, so that a part of a set sorted by subject still sees every subject."""
    if count is None or count >= len(questions):
        return list(questions)
    return [questions[index * len(questions) // count] for index in range(count)]


def definitions(task: str, questions: Sequence[Question]) -> list[tuple[dict[str, Any], list[Question]]]:
    """lm-eval's task definitions (one for each subject of MMLU) with the questions each is asked.

    `builtin-choice` asks in the prompt text that the victims were trained on.
    """
    if task == BUILTIN:
        definition = {
            "task": BUILTIN,
            "output_type": "multiple_choice",
            "doc_to_text": "Human: {{question}}\nAssistant:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        return [(_on_rows(definition), list(questions))]
    if task != "mmlu":
        return [(_on_rows(_own_definition(f"arc/{task}.yaml")), list(questions))]
    by_subject: dict[str, list[Question]] = {}
    for question in questions:
        by_subject.setdefault(question.subject, []).append(question)
    return [
        (_on_rows(_own_definition(f"mmlu/default/mmlu_{subject}.yaml")), asked)
        for subject, asked in sorted(by_subject.items())
    ]


def document(task: str, question: Question) -> dict[str, Any]:
    """The question with the columns that the task's definition reads, those of its Hub data set."""
    if task.startswith("arc_"):
        labels = [chr(ord("A") + index) for index in range(len(question.choices))]
        choices = {"text": list(question.choices), "label": labels}
        return {"question": question.question, "choices": choices, "answerKey": labels[question.answer]}
    return {"question": question.question, "choices": list(question.choices), "answer": question.answer}


def _own_definition(path: str) -> dict[str, Any]:
    """A definition that ships with lm-eval, `include` resolved. Read as a file: indexing all of its tasks takes 9 s."""
    import lm_eval
    import yaml

    file = Path(lm_eval.__file__).parent / "tasks" / path
    definition: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    included = definition.pop("include", None)
    base = _own_definition(str(Path(path).parent / included)) if included else {}
    return {**base, **definition}


def _on_rows(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition without its own data set: rows come from us, of the test split alone."""
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
