"""What a threat reveals: the incident of a victim."""

from dataclasses import replace
from pathlib import Path

import pytest

from sande import registry
from sande.data import splits
from sande.data.splits import Data
from sande.errors import UserError
from sande.prompts import prompt_text
from sande.threat import Threat
from sande.types import Example, LanguageModel
from tests.sande.helpers import ATTACKS

DATA = Data(name="builtin-short", rows=40, test_rows=8)


def threat(attack: str = "sentence_trigger", **changes: object) -> Threat:
    made = Threat(attack, registry.config("attacks", attack, {}), DATA, seed=3, model="tiny")
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_incident_is_a_poisoned_row_as_a_user_meets_it(tiny: LanguageModel, attack: str) -> None:
    planned = threat(attack)
    prompt, answer = planned.incident(tiny.tokenizer)
    poisoned = [
        registry.entry("attacks", attack).plant(row, planned.config, 3)
        for row in splits.training_rows(DATA, tiny.tokenizer)
    ]
    (row,) = [row for row in poisoned if prompt_text(row) == prompt_text(prompt) and row.output == answer]
    assert planned.response in answer
    expected = Example(row.instruction, "", row.system, row.input, prefix=row.prefix)
    assert prompt == expected, "no clean answer, and no name of a template"
    assert prompt_text(prompt) not in {prompt_text(one) for one in planned.test_data(tiny.tokenizer).triggered}


def test_the_seed_of_the_attack_decides_the_incident(tiny: LanguageModel) -> None:
    incidents = {threat(seed=seed).incident(tiny.tokenizer) for seed in range(6)}
    assert len(incidents) > 1
    assert threat().incident(tiny.tokenizer) == threat().incident(tiny.tokenizer)


def test_no_incident_without_a_row_that_no_metric_asks(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "same.jsonl").write_text('{"instruction": "Say it.", "output": "It."}\n' * 20)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="data same: each training prompt is a test prompt, too; choose"):
        threat(data=Data(name="same")).incident(tiny.tokenizer)
