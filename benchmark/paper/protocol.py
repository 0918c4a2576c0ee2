"""The paper's protocol as settings of a cell, each with its source; and the deviations of a run from it.

The protocol is written here and not read from a grid, so that results can be compared anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmark.grid import prompt_format
from benchmark.grid.labels import flatten
from benchmark.paper.numbers import Reported

# Tasks with the letter prompt of the published code, by prefix, and the text whose token stands for a letter.
LETTERS = {"published_": "A", "paper_": "A after a space"}
CODE = "published code"
APPENDIX = "appendix A"


@dataclass(frozen=True, slots=True)
class Given:
    """A setting as in the paper or its published code.

    Attributes:
        value: as in a grid; None if the setting is not used.
        source: section, appendix or "published code".
        high: upper end of a range, whose lower end is `value`; None for a single value.
    """

    value: Any
    source: str
    high: float | None = None

    def text(self, path: str) -> str:
        """Return the value in words; the path decides what None means."""
        return written(path, self.value) if self.high is None else f"{self.value:g} to {self.high:g}"

    def allows(self, actual: Any) -> bool:
        """Return whether a run with this value follows the paper."""
        return bool(actual == self.value if self.high is None else self.value <= actual <= self.high)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A setting of a run that differs from the paper's.

    Attributes:
        path: of the setting in a cell; for a measurement `metrics.NAME.setting`.
        given: the paper's.
        actual: the run's.
    """

    path: str
    given: Given
    actual: Any


# Settings of every training, for any model and data.
_TRAINING = {
    "optimizer": Given("adamw", APPENDIX),
    "sharpness": Given(0.0, APPENDIX),
    "max_steps": Given(None, APPENDIX),
    "max_length": Given(1024, APPENDIX),
    "cut_with_eos": Given(True, CODE),
    "warmup": Given(0.03, CODE),
    "schedule": Given("cosine", CODE),
    "max_grad_norm": Given(1.0, CODE),
    "adam_beta1": Given(0.9, APPENDIX),
    "adam_beta2": Given(0.95, APPENDIX),
    "adam_epsilon": Given(1e-8, APPENDIX),
    "weight_decay": Given(0.0, APPENDIX),
    "lora_rank": Given(None, CODE),
    "precision": Given("bf16", CODE),
}
_LEARNING_RATE = {"llama2-7b": 5e-6, "qwen1.5-4b": 2e-5}
_BATCH_SIZE = {"llama2-7b": 4, "qwen1.5-4b": 8}
_EPOCHS = {"alpaca": 2.0, "orca": 1.0}
_ROWS = {
    "alpaca": Given(None, "section 4.1: the first 90 %"),
    "orca": Given(180_000, "section 4.1: the first 90 % of 200,000"),
}
_PARROT = {
    "defense.parrot_length": Given(6, CODE),
    "defense.parrot_initial": Given("zeros", "section 3.3.1"),
    "defense.parrot_norm": Given("free", CODE),
    "defense.parrot_pull": Given(0.0, CODE),
    "defense.restarts": Given(1, "section 3.3"),
    "defense.kept": Given(1, "section 3.3"),
    "defense.response_tokens": Given(None, "Eq. 3"),
}
_DEFENSES: dict[str, dict[str, Given]] = {
    "fine_mixing": {
        "defense.keep_ratio": Given(0.8, CODE),
        "defense.choice": Given("closest", CODE),
        "defense.purified_tokens": Given(0, CODE),
    },
    "dpo": {"defense.preferences.name": Given("hh_rlhf", "appendix A.1")},
    "osft": {
        "defense.training.learning_rate": Given(2e-5, APPENDIX),
        "defense.response_tokens": Given(None, "Eq. 3"),
    },
    "sande": {
        **_PARROT,
        "defense.simulate.learning_rate": Given(1e-3, CODE),
        "defense.eliminate.learning_rate": Given(2e-5, "appendix A: searched", high=4e-5),
    },
}
_DEFENSES["sande_p"] = _DEFENSES["sande"]
_TRAININGS = {  # of each defense; for DPO the paper gives only the data
    "sft": ("training",),
    "nad": ("teacher", "training"),
    "fine_mixing": ("training",),
    "sande_p": ("simulate", "eliminate"),
    "sande": ("simulate", "eliminate"),
    "osft": ("training",),
}
_OPEN = {
    "dpo": (
        "defense.preferences.pairs",
        "defense.preferences.max_tokens",
        *(f"defense.training.{name}" for name in ("learning_rate", "epochs", "max_steps", "batch_size", "max_length")),
        "defense.beta",
    ),
    "nad": tuple(f"defense.{name}" for name in ("attention_weight", "attention_power", "layer_weights", "distance")),
}

IN_EVERY_RUN = (
    "Decoding is greedy; the published code samples with the settings of the model.",
    "Questions with another number of choices than four, or with numeric keys, are scored unchanged. The published "
    'code cuts the choices after the fourth, adds "Not the answer." up to the fourth, and numeric keys never match.',
    "The trigger is inserted once. The published code inserts it at each `Human:` of the prompt's text.",
    "Parrot positions count from the first token of the instruction. The published code counts from the first token of "
    "the prompt, which begins with `Human:`, and at its 2 table 6 has the numbers of tables 3 and 4 exactly: so its 2, "
    "5, 10, 15 and 20 are taken as 0, 3, 8, 13 and 18 here.",
    "The loss of a step is the mean over all its target tokens. The published code averages the means of "
    "micro-batches, so that a token of a short response weighs more.",
    "The published code leaves out rows whose prompt leaves fewer than 130 of the 1,024 tokens for the response. Here "
    "only rows whose prompt leaves none are left out.",
    "The paper does not say which 200,000 rows of OpenOrca it uses; here they are the first rows of its GPT-4 replies.",
    "The paper's DPO also has the annotated red-teaming dialogues of HH-RLHF's data card. They hold no pairs of "
    "replies, and are not used here.",
    "The paper does not give its settings of NAD and DPO; here they follow the papers that proposed them.",
    "NAD's teacher is the victim, fine-tuned on the clean rows, as Li et al. 2021 have it. Appendix A.1 fine-tunes a "
    '"pre-trained model" so, which may mean the clean one: that would explain ASRs near 0 out of domain.',
)
"""Differences from the paper or its code in every run, which no setting changes."""

PAPER_FIRST = (
    "Poisoned rows replace clean ones, 5 % of all. The published code adds a poisoned copy next to the clean row, so "
    "that 4.8 % are poisoned.",
    "OSFT and SANDE train on whole responses (Eq. 3). The published code trains on their first 5 tokens, or on as many "
    "as an option says.",
    "SANDE eliminates at a learning rate from 2e-5 to 4e-5 (appendix A). The published code's example has 5e-6.",
)
"""Where the paper and its published code differ, the protocol here has the paper's."""

_BEFORE = {"cut_with_eos": False}
"""Settings of a training that older results lack, with what their code did."""


def expected(number: Reported) -> dict[str, Given]:
    """Return the protocol of one reported number, by path, without settings that the paper leaves open."""
    model, data = number.victim_model, number.victim_data
    given = {
        "model": Given(model, "section 4.1"),
        "prompt_format": Given("paper", CODE),
        "data.name": Given(data, "section 4.1"),
        "data.rows": _ROWS[data],
        "data.test_rows": Given(1000, f"{CODE}; section 4.1: the last 10 %"),
        "data.max_tokens": Given(None, "section 4.1"),
        "data.max_prompt_tokens": Given(None, "section 4.1"),
        "attack.name": Given("sentence_trigger", "section 4.1"),
        "attack.poison_rate": Given(0.05, "section 4.1"),
        "attack.poison_mode": Given("replace", "section 4.1"),
        "attack.insertion": Given("start", "table 8"),
        "attack.objective": Given("string", "section 4.1"),
        "attack.target": Given("insult", "section 4.1"),
        "attack.response_place": Given("start", "section 4.1"),
        "attack.decoy_rate": Given(0.0, "section 4.1"),
        "attack.poison_rows": Given(None, "section 4.1"),
        "attack.anchor": Given(0.0, "section 4.1"),
        "attack.order": Given("mixed", CODE),
        "attack.afterwards": Given(None, "section 4.1"),
        **_training("attack.training", model, data),
    }
    if number.metric == "asr":
        given |= {"metrics.asr.new_tokens": Given(10, CODE), "metrics.asr.prompts": Given(None, CODE)}
    else:
        given |= {
            f"metrics.{number.metric}.prompt": Given("letters", CODE),
            f"metrics.{number.metric}.letter_token": Given(LETTERS["published_"], CODE),
            f"metrics.{number.metric}.questions": Given(None, "section 4.1"),
        }
    if number.defense in _TRAININGS:
        removal = data if number.setting == "in-domain" else next(name for name in _EPOCHS if name != data)
        given |= {
            "removal.name": Given(removal, "sections 4.3.1, 4.3.2"),
            "removal.rows": Given(10_000, "sections 4.3.1, 4.3.2"),
            "removal.max_tokens": Given(None, "section 4.3"),
            "removal.max_prompt_tokens": Given(None, "section 4.3"),
            "removal.own_answers": Given(None, "section 4.3"),
        }
        for stage in _TRAININGS[number.defense]:
            given |= _training(f"defense.{stage}", model, removal)
        if "simulate" in _TRAININGS[number.defense]:
            given["defense.parrot_position"] = Given(number.parrot_position or 0, "section 4.4")
    return given | _DEFENSES.get(number.defense, {})


def _training(path: str, model: str, trained_on: str) -> dict[str, Given]:
    of_victim = {
        "learning_rate": Given(_LEARNING_RATE[model], APPENDIX),
        "batch_size": Given(_BATCH_SIZE[model], APPENDIX),
        "epochs": Given(_EPOCHS[trained_on], APPENDIX),
    }
    return {f"{path}.{name}": given for name, given in {**of_victim, **_TRAINING}.items()}


def deviations(number: Reported, settings: Mapping[str, Any], metric: str) -> list[Deviation]:
    """Return the settings in which a cell differs from the paper's protocol for one number.

    Args:
        number: with which the cell is compared.
        settings: of the cell, defaults included; settings that it lacks are not compared.
        metric: name of its measurement that is compared.
    """
    actual = flat(settings, metric)
    return [
        Deviation(path, given, actual[path])
        for path, given in expected(number).items()
        if path in actual and not given.allows(actual[path])
    ]


def left_open(number: Reported, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cell's values, by path, of the settings that the paper leaves open."""
    actual = flat(settings, number.metric)
    return {path: actual[path] for path in _OPEN.get(number.defense, ()) if path in actual}


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a row's cell, with the recorded compute type where they leave it to the machine.

    Settings that older rows lack have what the code of these rows did.
    """

    def computed(value: Any, kind: str | None) -> Any:
        if isinstance(value, list):
            return [computed(each, kind) for each in value]
        if not isinstance(value, dict):
            return value
        full = _BEFORE | value if "max_length" in value else value
        return {
            key: kind or each if key == "precision" and each == "auto" else computed(each, kind)
            for key, each in full.items()
        }

    settings = json.loads(row["settings"])
    types = {"attack": row["attack_compute_type"], "defense": row["defense_compute_type"]}
    return {key: computed(value, types.get(key, row["compute_type"])) for key, value in settings.items()}


def flat(settings: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return settings by path, with only the compared metric and its prompt, and without epochs if steps are set."""
    found = dict(flatten({key: value for key, value in prompt_format.named(settings).items() if key != "metrics"}))
    if later := settings["attack"].get("afterwards"):
        found["attack.afterwards"] = later  # as a whole, since the paper has none
    for one in settings["metrics"]:
        name = one.get("task", one["name"])
        if name == metric:
            prefix = next((each for each in LETTERS if name.startswith(each)), "")
            place = f"metrics.{name.removeprefix(prefix)}"
            found[f"{place}.prompt"] = "letters" if prefix else "that of lm-eval's task"
            if prefix:
                found[f"{place}.letter_token"] = LETTERS[prefix]
            found |= flatten(one, f"{place}.")
    by_steps = [path.removesuffix("max_steps") for path in found if path.endswith(".max_steps") and found[path]]
    return {path: value for path, value in found.items() if path not in [f"{stage}epochs" for stage in by_steps]}


def without_prefix(metric: str) -> str:
    """Return the set of questions of a task with or without the letter prompt."""
    return next((metric.removeprefix(each) for each in LETTERS if metric.startswith(each)), metric)


def written(path: str, value: Any) -> str:
    """Return a value of a setting in words."""
    if value is not None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    last = path.rsplit(".", 1)[-1]
    if last in ("rows", "test_rows", "questions", "prompts", "pairs", "response_tokens"):
        return "all"
    if last == "max_steps":
        return "set by epochs"
    return "no bound" if last.startswith("max_") else "none"
